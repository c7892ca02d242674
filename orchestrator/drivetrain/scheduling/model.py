"""Input and output of the scheduler. Times are in seconds, by the clock of the caller."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Node:
    """A node and its total resources.

    Attributes:
        draining: whether the node is being drained: its gangs must stop, and no gang is placed on it.
        address: for display.
    """

    id: str
    cpus: float
    gpus: float
    draining: bool = False
    address: str = ""


@dataclass(frozen=True)
class Request:
    """A request for a gang: all of its workers at the same time, or none.

    Attributes:
        priority: higher values are scheduled first; only a strictly higher priority may preempt.
        since: start of the wait; after a preemption, the start of the first wait.
        workers: maximum number of workers.
        min_workers: minimum number of workers.
        cpus, gpus: per worker.
        expected_s: expected run time with the maximum number of workers; infinite if unknown.
        restart_s: cost of stopping with a checkpoint and resuming.
        preemptible: whether a run of higher priority may stop it, with a checkpoint.
    """

    run: str
    user: str
    queue: str
    priority: int
    since: float
    workers: int
    min_workers: int
    cpus: float
    gpus: float
    expected_s: float = math.inf
    restart_s: float = 30.0
    preemptible: bool = True


# Ranks per node: ((node id, number of ranks), ...), in the order of the ranks.
Placement = tuple[tuple[str, int], ...]


def workers_of(placement: Placement) -> int:
    """Return the total number of ranks."""
    return sum(ranks for _, ranks in placement)


def node_of(rank: int, placement: Placement) -> str:
    """Return the node of a rank."""
    for node, ranks in placement:
        if rank < ranks:
            return node
        rank -= ranks
    raise IndexError("no such rank")


@dataclass(frozen=True)
class AllocatedGang:
    """A gang with an allocation.

    Attributes:
        started: when the allocation was granted.
        level: effective priority at admission, including age: only a higher priority may preempt the gang.
        expected_end: with its current workers; infinite if unknown.
        leaving: whether the gang was asked to stop and will release its allocation soon.
        steady: whether the gang already runs training steps.
    """

    request: Request
    placement: Placement
    started: float
    level: int
    expected_end: float = math.inf
    leaving: bool = False
    steady: bool = False

    @property
    def workers(self) -> int:
        """Total number of ranks."""
        return workers_of(self.placement)


@dataclass(frozen=True)
class Admit:
    """Grant a placement to a queued gang. ``level``: see `AllocatedGang`."""

    run: str
    placement: Placement
    level: int


@dataclass(frozen=True)
class Preempt:
    """Ask a running gang to save and to release its allocation."""

    run: str
    why: str


@dataclass(frozen=True)
class Decision:
    """The result of one pass.

    Attributes:
        actions: in the order of execution.
        waiting: the reason for every request that stays queued, in the order of priority.
        short: queued requests that lack resources, limited to the size that quotas allow.
    """

    actions: list[Admit | Preempt] = field(default_factory=list)
    waiting: dict[str, str] = field(default_factory=dict)
    short: list[Request] = field(default_factory=list)
