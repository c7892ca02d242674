"""What is free on the nodes of a cluster, and where a gang fits."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from drivetrain.scheduling.model import AllocatedGang, Node, Placement, Request

_EPSILON = 1e-6  # resources are floats: a whole node minus its parts may be a hair off
_MAX_WORKERS_PER_NODE = 1 << 20  # workers on a node, where nothing bounds them


class FreeResources:
    """Free resources by node. Copies are cheap: plans are made on copies.

    Args:
        nodes: the cluster, all of it free.
    """

    def __init__(self, nodes: Iterable[Node]) -> None:
        nodes = sorted(nodes, key=lambda node: node.id)
        self._ids = [node.id for node in nodes]
        self._index = {node: index for index, node in enumerate(self._ids)}
        self.cpus = np.array([node.cpus for node in nodes], dtype=np.float64)
        self.gpus = np.array([node.gpus for node in nodes], dtype=np.float64)

    def copy(self) -> FreeResources:
        """The same, to plan on."""
        other = object.__new__(FreeResources)
        other._ids, other._index = self._ids, self._index
        other.cpus, other.gpus = self.cpus.copy(), self.gpus.copy()
        return other

    def minimum(self, other: FreeResources) -> FreeResources:
        """On every node the lesser of two rooms: what is free now and stays free."""
        least = self.copy()
        np.minimum(least.cpus, other.cpus, out=least.cpus)
        np.minimum(least.gpus, other.gpus, out=least.gpus)
        return least

    def allocate(self, request: Request, placement: Placement) -> None:
        """Less by a gang. Nodes that are gone are passed over."""
        self._add(request, placement, -1)

    def release(self, request: Request, placement: Placement) -> None:
        """More by a gang. Nodes that are gone are passed over."""
        self._add(request, placement, 1)

    def release_all(self, gangs: Iterable[AllocatedGang]) -> None:
        """More by several gangs, as `give`."""
        for gang in gangs:
            self._add(gang.request, gang.placement, 1)

    def find_placement(self, request: Request) -> Placement | None:
        """Where a gang fits, as large as possible; None where not even its least size does.

        On as few nodes as possible; what does not need a whole node goes where the least is left over.
        """
        ranks = self._ranks(request)
        workers = min(request.workers, int(ranks.sum()))
        if workers < request.min_workers:
            return None
        placement: list[tuple[str, int]] = []
        for node in np.argsort(-ranks, kind="stable"):
            if ranks[node] >= workers:  # so would some of the nodes after it: the tightest takes the rest
                tightest = np.where(ranks >= workers, ranks, _MAX_WORKERS_PER_NODE).argmin()
                placement.append((self._ids[tightest], workers))
                break
            placement.append((self._ids[node], int(ranks[node])))
            workers -= int(ranks[node])
            ranks[node] = 0
        return tuple(placement)

    def fits(self, request: Request) -> bool:
        """Whether the least size of a gang fits."""
        return bool(self._ranks(request).sum() >= request.min_workers)

    def _ranks(self, request: Request) -> npt.NDArray[np.int64]:
        """Workers of the gang that each node could take."""
        ranks = np.full(len(self._ids), float(_MAX_WORKERS_PER_NODE))
        for free, needed in ((self.cpus, request.cpus), (self.gpus, request.gpus)):
            if needed:
                np.minimum(ranks, np.floor(free / needed + _EPSILON), out=ranks)
        whole: npt.NDArray[np.int64] = np.maximum(ranks, 0).astype(np.int64)
        return whole

    def _add(self, request: Request, placement: Placement, sign: int) -> None:
        for node, ranks in placement:
            index = self._index.get(node)
            if index is not None:
                self.cpus[index] += sign * ranks * request.cpus
                self.gpus[index] += sign * ranks * request.gpus
