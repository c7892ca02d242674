"""Time accounting: every second of a run, from submission to end, in exactly one class. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Protocol

import numpy as np
from drivetrain_workers.records.step_times import ITERATION, PARTS, Iterations
from numpy.typing import NDArray

CLASSES = {
    "queued": "waiting for an allocation on the cluster",
    "provisioning": "waiting for agents on the allocated nodes",
    "preparing": "preparing data",
    "starting": "forking ranks, joining the process group, building the model",
    "computing": "forward, backward and optimizer",
    "waiting for data": "the next batch was not ready",
    "communicating": "ranks waiting in collectives",
    "saving": "training waiting for checkpoints",
    "evaluating": "evaluations and predictions",
    "recomputing": "lost or repeated because of a failure",
    "recovering": "from a failure to the next step",
    "finishing": "sample, plots and the last uploads",
    "idle": "none of these",
}

_CLASS_WITHOUT_RANKS = {
    "queued": "queued",
    "preparing": "preparing",
    "ready": "queued",
    "placing": "provisioning",
    "waiting": "recovering",
    "finishing": "finishing",
    "ended": "idle",
}
_PHASES_WITH_RANKS = ("starting", "training", "stopping")  # phases with ranks
_CLASS_OF_PART = dict(
    zip(PARTS, ("waiting for data", "computing", "communicating", "evaluating", "saving"), strict=True),
)
NUMBER_OF_CLASS = {name: number for number, name in enumerate(CLASSES)}
NO_ITERATIONS: Iterations = np.empty(0, ITERATION)


@dataclass(frozen=True)
class PhaseInterval:
    """An interval in which a run was in one phase.

    Attributes:
        generation: number of the generation of ranks.
        begin, end: seconds since the epoch.
    """

    phase: str
    generation: int
    begin: float
    end: float


@dataclass(frozen=True)
class Goodput:
    """The time of a run by class.

    Attributes:
        seconds: by class of `CLASSES`; their sum is ``wall_s``.
        wall_s: from submission until the end of the run, or until now.
    """

    seconds: dict[str, float]
    wall_s: float

    @property
    def share(self) -> float:
        """Fraction of the time since the first allocation that was spent on useful steps: 0 to 1."""
        running = self.wall_s - self.seconds["queued"] - self.seconds["preparing"]
        return (self.seconds["computing"] + self.seconds["communicating"]) / running if running > 0 else 0.0


@dataclass(frozen=True)
class Timeline:
    """The time of a run, interval by interval.

    Attributes:
        begins, ends: of the intervals, in order and without gaps; seconds since the epoch.
        classes: class of each interval, as an index into `CLASSES`.
    """

    begins: NDArray[np.float64]
    ends: NDArray[np.float64]
    classes: NDArray[np.int64]

    @property
    def goodput(self) -> Goodput:
        """Sums over all intervals."""
        sums = np.bincount(self.classes, self.ends - self.begins, len(CLASSES)).astype(np.float64)
        return Goodput(by_class(sums), float(self.ends[-1] - self.begins[0]) if len(self.ends) else 0.0)

    def over_time(self, slices: int) -> NDArray[np.float64]:
        """Return the share of each class ``[classes, slices]`` in equal slices of the total time."""
        edges = np.linspace(self.begins[0], self.ends[-1], slices + 1)
        shares = np.empty((len(CLASSES), slices))
        for number in range(len(CLASSES)):
            lengths = np.where(self.classes == number, self.ends - self.begins, 0.0)
            spent = np.concatenate([[0.0], np.cumsum(lengths)])  # up to the end of each interval
            at = np.interp(edges, np.concatenate([self.begins[:1], self.ends]), spent)
            shares[number] = np.diff(at) / np.diff(edges)
        return shares


def phase_intervals(created: float, history: Iterable[tuple[float, str, int]], now: float) -> list[PhaseInterval]:
    """Return the phase intervals of a run from its submission time and its transitions (time, phase, generation).

    Args:
        now: end of the last interval if the run has not ended.
    """
    marks = [(created, "queued", 0), *history]
    if marks[-1][1] != "ended":
        marks.append((now, "", 0))
    return [
        PhaseInterval(phase, generation, at, max(at, then)) for (at, phase, generation), (then, *_) in pairwise(marks)
    ]


class TimeAccumulator(Protocol):
    """Accumulates the time of a run, interval by interval."""

    def add(self, end: float, name: str) -> None:
        """Add the time from the end of the last interval to ``end`` to a class."""

    def first_iteration_begin(self, generation: int, limit: float) -> float | None:
        """Return the begin of the first loop iteration of a generation; None if none began before ``limit``."""

    def add_iterations(self, generation: int, limit: float, reached: int) -> int:
        """Add the iterations of a generation that began before ``limit``; return their highest step.

        Time between iterations is idle. Steps up to ``reached`` are recomputed.
        """


def account(intervals: Sequence[PhaseInterval], iterations: Mapping[int, Iterations]) -> Timeline:
    """Account for the time of a run from all its loop iterations.

    `drivetrain.accounting.running_totals` does the same incrementally.

    Args:
        intervals: as returned by `phase_intervals`.
        iterations: by generation, as returned by `drivetrain_workers.records.step_times.read_iterations`.
    """
    accumulator = _IntervalAccumulator(intervals[0].begin, iterations)
    accumulate(intervals, accumulator)
    return accumulator.timeline()


def accumulate(intervals: Sequence[PhaseInterval], accumulator: TimeAccumulator) -> None:
    """Add the time of a run to an accumulator.

    In phases with ranks, the loop iterations recorded by rank 0 determine the class; time between them is idle. An
    iteration whose step an earlier generation had already reached is recomputed. The time after the last iteration of a
    failed generation is lost.

    Args:
        intervals: as returned by `phase_intervals`.
    """
    failed, reached = False, 0
    groups = [list(group) for _, group in groupby(intervals, key=_ranks_of)]
    for group, after in zip(groups, [*groups[1:], []], strict=True):
        first, last = group[0], group[-1]
        if first.phase not in _PHASES_WITH_RANKS:
            for interval in group:
                failed = failed and interval.phase != "ended"  # a resume by a user is not a recovery
                accumulator.add(interval.end, "recovering" if failed else _CLASS_WITHOUT_RANKS[interval.phase])
            continue
        begins_training = accumulator.first_iteration_begin(first.generation, last.end)
        accumulator.add(
            last.end if begins_training is None else begins_training, "recovering" if failed else "starting"
        )
        failed = bool(after) and after[0].phase != "finishing" and last.phase != "stopping"
        if begins_training is not None:
            reached = max(reached, accumulator.add_iterations(first.generation, last.end, reached))
            accumulator.add(last.end, "recomputing" if failed else "saving" if after else "computing")


def by_class(seconds: NDArray[np.float64]) -> dict[str, float]:
    """Return an array of sums as a dictionary by class."""
    return dict(zip(CLASSES, seconds.tolist(), strict=True))


def iteration_intervals(
    records: Iterations, at: float, limit: float, reached: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Divide the time of loop iterations into intervals: the parts of each iteration, and the gap to the next one.

    Args:
        records: iterations of one generation, in the order of the file.
        at, limit: bounds of the intervals.
        reached: steps up to this one are recomputed.

    Returns:
        Non-decreasing edges ``[iterations, parts + 2]``, and the classes ``[iterations, parts + 1]`` between them.
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
        [NUMBER_OF_CLASS[_CLASS_OF_PART[part]] for part in PARTS] + [NUMBER_OF_CLASS["idle"]], (len(records), 1)
    )
    classes[records["step"] <= reached, : len(PARTS)] = NUMBER_OF_CLASS["recomputing"]
    return edges, classes


def _ranks_of(interval: PhaseInterval) -> tuple[bool, int]:
    """Return a key that groups intervals with the same ranks."""
    return (True, interval.generation) if interval.phase in _PHASES_WITH_RANKS else (False, 0)


class _IntervalAccumulator:
    """Keeps every interval.

    Args:
        begin: of the first interval.
        iterations: see `account`.
    """

    def __init__(self, begin: float, iterations: Mapping[int, Iterations]) -> None:
        self._at, self._iterations = begin, iterations
        self._parts: list[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]] = []

    def add(self, end: float, name: str) -> None:
        end = max(end, self._at)
        self._parts.append((np.array([self._at]), np.array([end]), np.array([NUMBER_OF_CLASS[name]])))
        self._at = end

    def first_iteration_begin(self, generation: int, limit: float) -> float | None:
        records = self._begun(generation, limit)
        return float(records["began"][0]) if len(records) else None

    def add_iterations(self, generation: int, limit: float, reached: int) -> int:
        records = self._begun(generation, limit)
        edges, classes = iteration_intervals(records, self._at, limit, reached)
        self._parts.append((edges[:, :-1].ravel(), edges[:, 1:].ravel(), classes.ravel()))
        self._at = float(edges[-1, -1])
        return int(records["step"].max())

    def _begun(self, generation: int, limit: float) -> Iterations:
        records = self._iterations.get(generation, NO_ITERATIONS)
        return records[records["began"] < limit]

    def timeline(self) -> Timeline:
        """Return all intervals."""
        begins, ends, classes = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        return Timeline(begins, ends, classes)
