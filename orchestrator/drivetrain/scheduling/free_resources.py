"""Free resources of the nodes, and the placement of a gang on them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from drivetrain.scheduling.model import AllocatedGang, Node, Placement, Request

_EPSILON = 1e-6  # resources are floats: sums have rounding errors
_MAX_WORKERS_PER_NODE = 1 << 20  # where no resource bounds them


class FreeResources:
    """Free resources by node. Copies are cheap; planning works on copies.

    Args:
        nodes: of the cluster, all free.
    """

    def __init__(self, nodes: Iterable[Node]) -> None:
        nodes = sorted(nodes, key=lambda node: node.id)
        self._ids = [node.id for node in nodes]
        self._index = {node: index for index, node in enumerate(self._ids)}
        self.cpus = np.array([node.cpus for node in nodes], dtype=np.float64)
        self.gpus = np.array([node.gpus for node in nodes], dtype=np.float64)

    def copy(self) -> FreeResources:
        """Return a copy."""
        other = object.__new__(FreeResources)
        other._ids, other._index = self._ids, self._index
        other.cpus, other.gpus = self.cpus.copy(), self.gpus.copy()
        return other

    def minimum(self, other: FreeResources) -> FreeResources:
        """Return the minimum per node of these and other free resources."""
        least = self.copy()
        np.minimum(least.cpus, other.cpus, out=least.cpus)
        np.minimum(least.gpus, other.gpus, out=least.gpus)
        return least

    def allocate(self, request: Request, placement: Placement) -> None:
        """Subtract the resources of a gang. Nodes that have left the cluster are skipped."""
        self._add(request, placement, -1)

    def release(self, request: Request, placement: Placement) -> None:
        """Add the resources of a gang. Nodes that have left the cluster are skipped."""
        self._add(request, placement, 1)

    def release_all(self, gangs: Iterable[AllocatedGang]) -> None:
        """Add the resources of several gangs, as `release`."""
        for gang in gangs:
            self._add(gang.request, gang.placement, 1)

    def find_placement(self, request: Request) -> Placement | None:
        """Return a placement of a gang with as many workers as possible; None if its minimum size does not fit.

        It uses as few nodes as possible. The last workers go to the node with the least free resources that fits.
        """
        ranks = self._ranks(request)
        workers = min(request.workers, int(ranks.sum()))
        if workers < request.min_workers:
            return None
        placement: list[tuple[str, int]] = []
        for node in np.argsort(-ranks, kind="stable"):
            if ranks[node] >= workers:  # some later nodes may also fit: choose the tightest
                tightest = np.where(ranks >= workers, ranks, _MAX_WORKERS_PER_NODE).argmin()
                placement.append((self._ids[tightest], workers))
                break
            placement.append((self._ids[node], int(ranks[node])))
            workers -= int(ranks[node])
            ranks[node] = 0
        return tuple(placement)

    def fits(self, request: Request) -> bool:
        """Check whether the minimum size of a gang fits."""
        return bool(self._ranks(request).sum() >= request.min_workers)

    def _ranks(self, request: Request) -> npt.NDArray[np.int64]:
        """Return the number of workers of the gang that fit on each node."""
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
