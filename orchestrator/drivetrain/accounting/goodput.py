"""Every second of a run, from when it was submitted to its end, in exactly one class. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Protocol

import numpy as np
from drivetrain_workers.records.step_times import ITERATION, PARTS, Iterations
from numpy.typing import NDArray

CLASSES = {
    "queued": "waiting for a place on the cluster",
    "provisioning": "waiting for agents at the place",
    "preparing": "preparing data",
    "starting": "forking ranks, joining, building the model",
    "computing": "forward, backward and optimizer",
    "waiting for data": "the next batch was not there yet",
    "communicating": "ranks waiting in collectives",
    "saving": "training waiting for checkpoints",
    "evaluating": "evaluations and predictions",
    "recomputing": "lost to a failure, or done again because of it",
    "recovering": "from a failure to the next step",
    "finishing": "sample, pictures and the last uploads",
    "idle": "none of these",
}

_WITHOUT_RANKS = {
    "queued": "queued",
    "preparing": "preparing",
    "ready": "queued",
    "placing": "provisioning",
    "waiting": "recovering",
    "finishing": "finishing",
    "ended": "idle",
}
_LIVE = ("starting", "training", "stopping")  # phases in which there are ranks
_OF_PART = dict(
    zip(PARTS, ("waiting for data", "computing", "communicating", "evaluating", "saving"), strict=True),
)
NUMBER_OF_CLASS = {name: number for number, name in enumerate(CLASSES)}
NO_TURNS: Iterations = np.empty(0, ITERATION)


@dataclass(frozen=True)
class Stay:
    """How long a run was in one phase.

    Attributes:
        generation: of ranks, at the time.
        begin, end: seconds since the epoch.
    """

    phase: str
    generation: int
    begin: float
    end: float


@dataclass(frozen=True)
class Goodput:
    """The account of a run.

    Attributes:
        seconds: by class of `CLASSES`; they add up to ``wall_s``.
        wall_s: from when it was submitted until its end, or until now.
    """

    seconds: dict[str, float]
    wall_s: float

    @property
    def share(self) -> float:
        """Of the time since the run got its first place, what went into steps that count: 0 to 1."""
        running = self.wall_s - self.seconds["queued"] - self.seconds["preparing"]
        return (self.seconds["computing"] + self.seconds["communicating"]) / running if running > 0 else 0.0


@dataclass(frozen=True)
class Timeline:
    """The account of a run, stretch by stretch.

    Attributes:
        begins, ends: of stretches of time, in order and without gaps; seconds since the epoch.
        classes: of each stretch, as an index into `CLASSES`.
    """

    begins: NDArray[np.float64]
    ends: NDArray[np.float64]
    classes: NDArray[np.int64]

    @property
    def goodput(self) -> Goodput:
        """The sums of all stretches."""
        sums = np.bincount(self.classes, self.ends - self.begins, len(CLASSES)).astype(np.float64)
        return Goodput(by_class(sums), float(self.ends[-1] - self.begins[0]) if len(self.ends) else 0.0)

    def over_time(self, slices: int) -> NDArray[np.float64]:
        """Shares of each class ``[classes, slices]`` in equal slices of the whole time."""
        edges = np.linspace(self.begins[0], self.ends[-1], slices + 1)
        shares = np.empty((len(CLASSES), slices))
        for number in range(len(CLASSES)):
            mine = self.classes == number
            lengths = np.where(mine, self.ends - self.begins, 0.0)
            spent = np.concatenate([[0.0], np.cumsum(lengths)])  # up to the end of each stretch
            at = np.interp(edges, np.concatenate([self.begins[:1], self.ends]), spent)
            shares[number] = np.diff(at) / np.diff(edges)
        return shares


def stays(created: float, history: Iterable[tuple[float, str, int]], now: float) -> list[Stay]:
    """The stays of a run, from its transitions (when, phase, generation) and when it was submitted.

    Args:
        now: where the account ends, unless the run has ended before.
    """
    marks = [(created, "queued", 0), *history]
    if marks[-1][1] != "ended":
        marks.append((now, "", 0))
    return [Stay(phase, generation, at, max(at, then)) for (at, phase, generation), (then, *_) in pairwise(marks)]


class Book(Protocol):
    """Where a run's time is entered, one stretch behind the other."""

    def add(self, end: float, name: str) -> None:
        """Enter the time from where the last stretch ended to ``end`` under a class."""

    def begin_of_turns(self, generation: int, limit: float) -> float | None:
        """Return when the first turn of a generation began; None if none began before ``limit``."""

    def add_turns(self, generation: int, limit: float, reached: int) -> int:
        """Enter the turns of a generation that began before ``limit``, up to there; return their highest step.

        What lies between turns is idle. Steps up to ``reached`` are done again.
        """


def account(found: Sequence[Stay], turns: Mapping[int, Iterations]) -> Timeline:
    """Account for the time of a run, reading all its turns. `drivetrain.accounting.sums` reads them as they come.

    Args:
        found: as of `stays`.
        turns: of each generation, as of `drivetrain_workers.records.step_times.read_iterations`.
    """
    stretches = _Stretches(found[0].begin, turns)
    enter(found, stretches)
    return stretches.done()


def enter(found: Sequence[Stay], book: Book) -> None:
    """Enter the time of a run into a book.

    Where ranks lived, the turns that rank 0 has written say what was done; what lies between them is idle. A turn that
    ends with a step which an earlier generation had reached before is done again. What follows the last turn of a
    generation that has failed is lost.

    Args:
        found: as of `stays`.
    """
    failed, reached = False, 0
    groups = [list(group) for _, group in groupby(found, key=_life)]
    for group, after in zip(groups, [*groups[1:], []], strict=True):
        first, last = group[0], group[-1]
        if first.phase not in _LIVE:
            for stay in group:
                failed = failed and stay.phase != "ended"  # a user who resumes it begins with a clean slate
                book.add(stay.end, "recovering" if failed else _WITHOUT_RANKS[stay.phase])
            continue
        begins_training = book.begin_of_turns(first.generation, last.end)
        book.add(last.end if begins_training is None else begins_training, "recovering" if failed else "starting")
        failed = bool(after) and after[0].phase != "finishing" and last.phase != "stopping"
        if begins_training is not None:
            reached = max(reached, book.add_turns(first.generation, last.end, reached))
            book.add(last.end, "recomputing" if failed else "saving" if after else "computing")


def by_class(seconds: NDArray[np.float64]) -> dict[str, float]:
    """Name the entries of an array with a sum for each class."""
    return dict(zip(CLASSES, seconds.tolist(), strict=True))


def turn_stretches(
    records: Iterations, at: float, limit: float, reached: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Divide the time of turns into stretches: the parts of each turn, and what lies between it and the next one.

    Args:
        records: turns of one generation, in the order in which they were written.
        at, limit: the stretches lie between these two.
        reached: steps up to this one are done again.

    Returns:
        Edges ``[turns, parts + 2]``, which never fall, and the classes ``[turns, parts + 1]`` of what lies between.
    """
    edges = np.empty((len(records), len(PARTS) + 2))
    edges[:, 0] = records["began"]
    edges[:, 1:-1] = np.stack([records[part] for part in PARTS], axis=1)
    edges[:, :-1] = np.cumsum(edges[:, :-1], axis=1)
    following = np.append(edges[1:, 0], edges[-1, -2])
    edges[:, -1] = following
    edges = np.clip(np.minimum(edges, following[:, None]), at, max(at, limit))
    edges = np.maximum.accumulate(edges.ravel()).reshape(len(records), -1)
    classes = np.tile(
        [NUMBER_OF_CLASS[_OF_PART[part]] for part in PARTS] + [NUMBER_OF_CLASS["idle"]], (len(records), 1)
    )
    classes[records["step"] <= reached, : len(PARTS)] = NUMBER_OF_CLASS["recomputing"]
    return edges, classes


def _life(stay: Stay) -> tuple[bool, int]:
    """Stays in which the same ranks live belong together."""
    return (True, stay.generation) if stay.phase in _LIVE else (False, 0)


class _Stretches:
    """A book that keeps every stretch.

    Args:
        begin: of the first one.
        turns: see `account`.
    """

    def __init__(self, begin: float, turns: Mapping[int, Iterations]) -> None:
        self._at, self._turns = begin, turns
        self._parts: list[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]] = []

    def add(self, end: float, name: str) -> None:
        end = max(end, self._at)
        self._parts.append((np.array([self._at]), np.array([end]), np.array([NUMBER_OF_CLASS[name]])))
        self._at = end

    def begin_of_turns(self, generation: int, limit: float) -> float | None:
        records = self._begun(generation, limit)
        return float(records["began"][0]) if len(records) else None

    def add_turns(self, generation: int, limit: float, reached: int) -> int:
        records = self._begun(generation, limit)
        edges, classes = turn_stretches(records, self._at, limit, reached)
        self._parts.append((edges[:, :-1].ravel(), edges[:, 1:].ravel(), classes.ravel()))
        self._at = float(edges[-1, -1])
        return int(records["step"].max())

    def _begun(self, generation: int, limit: float) -> Iterations:
        records = self._turns.get(generation, NO_TURNS)
        return records[records["began"] < limit]

    def done(self) -> Timeline:
        """All of them."""
        begins, ends, classes = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        return Timeline(begins, ends, classes)
