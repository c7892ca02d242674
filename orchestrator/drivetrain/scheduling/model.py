"""What the scheduler knows, and what it decides. Times are seconds, of whatever clock the caller has."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Node:
    """A machine, with all that it has.

    Attributes:
        draining: whether it is about to leave: whoever is there has to go, and nobody comes.
        address: for people.
    """

    id: str
    cpus: float
    gpus: float
    draining: bool = False
    address: str = ""


@dataclass(frozen=True)
class Request:
    """A gang that is asked for: all of its workers at once, or none.

    Attributes:
        priority: higher goes first; only what is strictly higher may preempt.
        since: when it began to wait, or, after a preemption, when it first did.
        workers: as many as it can use.
        min_workers: as few as it runs with.
        cpus, gpus: per worker.
        expected_s: how long it will run with all of its workers; infinite where nobody knows.
        restart_s: what stopping it with a checkpoint and going on costs it.
        preemptible: whether it may be stopped, with a checkpoint, for what is more urgent.
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


# Ranks on nodes: ((node id, ranks), ...), the first ranks first.
Placement = tuple[tuple[str, int], ...]


def workers_of(placement: Placement) -> int:
    """Ranks in all."""
    return sum(ranks for _, ranks in placement)


def node_of(rank: int, placement: Placement) -> str:
    """The node that a rank is on."""
    for node, ranks in placement:
        if rank < ranks:
            return node
        rank -= ranks
    raise IndexError("no such rank")


@dataclass(frozen=True)
class AllocatedGang:
    """A gang that has its place.

    Attributes:
        started: when it got it.
        level: what it counted for when it was admitted, its age included: only a higher priority may preempt it.
        expected_end: with these workers; infinite where nobody knows.
        leaving: whether it was asked to stop and will give its place back soon.
        steady: whether it makes steps there by now.
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
        """Ranks in all."""
        return workers_of(self.placement)


@dataclass(frozen=True)
class Admit:
    """Give a waiting gang this place. ``level``: see `AllocatedGang`."""

    run: str
    placement: Placement
    level: int


@dataclass(frozen=True)
class Preempt:
    """Ask a running gang to save and give its place back."""

    run: str
    why: str


@dataclass(frozen=True)
class Decision:
    """The outcome of one pass.

    Attributes:
        actions: in the order in which they are to be carried out.
        waiting: for every request that stays in the queue, in the order of precedence: why.
        short: those of them that wait for room, as large as quotas allow.
    """

    actions: list[Admit | Preempt] = field(default_factory=list)
    waiting: dict[str, str] = field(default_factory=dict)
    short: list[Request] = field(default_factory=list)
