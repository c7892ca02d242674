"""The time of a run as running totals for repeated queries: each loop iteration is read and added once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from drivetrain_workers.records.step_times import IterationFile, Iterations
from numpy.typing import NDArray

from drivetrain.accounting.goodput import (
    CLASSES,
    NO_ITERATIONS,
    NUMBER_OF_CLASS,
    Goodput,
    PhaseInterval,
    accumulate,
    by_class,
    iteration_intervals,
)

_CHUNK_ITERATIONS = 1 << 15  # iterations per read


class RunningTotals:
    """Running totals of the time of one run.

    Args:
        folder: of its step times.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._generations: dict[int, GenerationTotals] = {}

    def goodput(self, intervals: Sequence[PhaseInterval]) -> Goodput:
        """Return the same result as `drivetrain.accounting.goodput.account` over all iterations so far.

        Args:
            intervals: as returned by `drivetrain.accounting.goodput.phase_intervals`.
        """
        totals = _TotalsAccumulator(intervals[0].begin, self)
        accumulate(intervals, totals)
        return Goodput(by_class(totals.seconds), totals.at - intervals[0].begin)

    def generation(self, number: int) -> GenerationTotals:
        """Return the totals of one generation."""
        if number not in self._generations:
            self._generations[number] = GenerationTotals(IterationFile(self._folder, number))
        return self._generations[number]


class _TotalsAccumulator:
    """Keeps one total per class."""

    def __init__(self, begin: float, run: RunningTotals) -> None:
        self.at, self._run = begin, run
        self.seconds = np.zeros(len(CLASSES))

    def add(self, end: float, name: str) -> None:
        end = max(end, self.at)
        self.seconds[NUMBER_OF_CLASS[name]] += end - self.at
        self.at = end

    def first_iteration_begin(self, generation: int, limit: float) -> float | None:
        return self._run.generation(generation).begin(limit)

    def add_iterations(self, generation: int, limit: float, reached: int) -> int:
        found = self._run.generation(generation).totals(self.at, limit, reached)
        self.seconds += found.seconds
        self.at = found.end
        return found.step


@dataclass(frozen=True)
class IterationTotals:
    """Totals over loop iterations.

    Attributes:
        seconds: by class.
        end: end of the last interval.
        step: highest step.
    """

    seconds: NDArray[np.float64]
    end: float
    step: int = 0

    @classmethod
    def empty(cls, at: float) -> IterationTotals:
        """Return totals over no iterations; the first interval will begin at ``at``."""
        return cls(np.zeros(len(CLASSES)), at)

    def plus(self, iterations: Iterations, edges: NDArray[np.float64], classes: NDArray[np.int64]) -> IterationTotals:
        """Add the next iterations; edges and classes as returned by `iteration_intervals`."""
        # Summed in order: the result is bit-identical for any partition into reads.
        seconds = np.concatenate([self.seconds, np.diff(edges, axis=1).ravel()])
        sums = np.bincount(np.concatenate([np.arange(len(CLASSES)), classes.ravel()]), seconds, len(CLASSES))
        return IterationTotals(
            sums.astype(np.float64), float(edges[-1, -1]), max(self.step, int(iterations["step"].max()))
        )


class GenerationTotals:
    """Totals over the loop iterations of one generation.

    An iteration is final when it lies before the limit of a query and the next one has been written: its intervals
    no longer change. Final iterations are kept as totals, the others as records. The file is read again if a query does
    not continue the previous one, which happens when an earlier generation has written one more iteration.
    """

    def __init__(self, file: IterationFile) -> None:
        self._file = file
        self._at, self._reached = 0.0, 0
        self._first: float | None = None  # begin of the first final iteration
        self._totals = IterationTotals.empty(self._at)  # of the final iterations
        self._pending = NO_ITERATIONS  # iterations that are not final

    def begin(self, limit: float) -> float | None:
        """Return the begin of the first iteration; None if none began before ``limit``."""
        if self._first is not None and self._totals.end < limit:
            return self._first
        self._restart(self._at, self._reached)
        while True:
            begun = self._pending["began"][self._pending["began"] < limit]
            if len(begun) or not self._read():
                return float(begun[0]) if len(begun) else None

    def totals(self, at: float, limit: float, reached: int) -> IterationTotals:
        """Return the totals of the iterations that began before ``limit``; `begin` has found at least one.

        Args: see `iteration_intervals`.
        """
        if (at, reached) != (self._at, self._reached):
            self._restart(at, reached)
        self._finish(limit)
        while self._read():
            self._finish(limit)
        begun = self._pending[self._pending["began"] < limit]
        return self._totals.plus(begun, *self._intervals(begun, limit)) if len(begun) else self._totals

    def _restart(self, at: float, reached: int) -> None:
        """Start again from the first iteration."""
        if self._first is not None:
            self._file.rewind()
            self._pending, self._first = NO_ITERATIONS, None
        self._at, self._reached = at, reached
        self._totals = IterationTotals.empty(at)

    def _read(self) -> bool:
        """Read more iterations; return whether there were any."""
        piece = self._file.read(_CHUNK_ITERATIONS)
        self._pending = np.concatenate([self._pending, piece])
        return len(piece) > 0

    def _finish(self, limit: float) -> None:
        """Move the iterations that have become final into the totals."""
        if not len(self._pending):
            return
        edges, classes = self._intervals(self._pending, limit)
        final = (self._pending["began"] < limit) & (edges[:, -1] < limit)
        final[-1] = False
        if count := int(np.argmin(final)):
            if self._first is None:
                self._first = float(self._pending["began"][0])
            self._totals = self._totals.plus(self._pending[:count], edges[:count], classes[:count])
            self._pending = self._pending[count:].copy()

    def _intervals(self, iterations: Iterations, limit: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        return iteration_intervals(iterations, self._totals.end, limit, self._reached)
