"""Decisions that can be argued about. Pure functions: they never sleep and never call Ray."""

from __future__ import annotations

from dataclasses import dataclass

from drivetrain.runs.outcomes import OUTCOMES, Reason
from drivetrain.runs.states import Progress

_MAX_DELAY_S = 60.0


def retry_delay(progress: Progress, reason: Reason) -> float | None:
    """Seconds to wait before the next generation; None to give up.

    The first failure at a place restarts at once. Failures that repeat without any progress wait 1, 2, 4, ... seconds,
    as often as the reason is worth.

    Args:
        progress: with this failure already counted in ``failures``.
    """
    if progress.failures > OUTCOMES[reason].retries:
        return None
    return 0.0 if progress.failures <= 1 else min(_MAX_DELAY_S, 2.0 ** (progress.failures - 2))


@dataclass(frozen=True)
class NodeResources:
    """What a live node of the cluster has in all."""

    cpus: float
    gpus: float


def gang_shape(nodes: list[NodeResources], workers: int, cpus: int, gpus: int) -> list[int] | None:
    """Ranks per node, on as few nodes as possible, largest first; None when the cluster cannot hold them.

    Args:
        cpus, gpus: per worker.
    """
    room = sorted((_room(node, cpus, gpus) for node in nodes), reverse=True)
    shape = []
    for places in room:
        if workers and places:
            shape.append(min(places, workers))
            workers -= shape[-1]
    return None if workers else shape


def _room(node: NodeResources, cpus: int, gpus: int) -> int:
    by_cpu = int(node.cpus // cpus)
    return min(by_cpu, int(node.gpus // gpus)) if gpus else by_cpu
