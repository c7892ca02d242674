"""The account of a run in sums, for a reader that asks again and again: turns are read and added up once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from drivetrain_workers.records.step_times import IterationFile, Iterations
from numpy.typing import NDArray

from drivetrain.accounting.goodput import (
    CLASSES,
    NO_TURNS,
    NUMBER_OF_CLASS,
    Goodput,
    Stay,
    by_class,
    enter,
    turn_stretches,
)

_PIECE = 1 << 15  # turns that are read at once


class RunSums:
    """Adds up the time of one run.

    Args:
        folder: of its step times.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._generations: dict[int, TurnSums] = {}

    def goodput(self, found: Sequence[Stay]) -> Goodput:
        """Return what `drivetrain.accounting.goodput.account` would find in all turns that were written so far.

        Args:
            found: as of `drivetrain.accounting.goodput.stays`.
        """
        book = _SumBook(found[0].begin, self)
        enter(found, book)
        return Goodput(by_class(book.seconds), book.at - found[0].begin)

    def generation(self, number: int) -> TurnSums:
        """Return the sums of one generation's turns."""
        if number not in self._generations:
            self._generations[number] = TurnSums(IterationFile(self._folder, number))
        return self._generations[number]


class _SumBook:
    """A book that keeps one sum for each class."""

    def __init__(self, begin: float, run: RunSums) -> None:
        self.at, self._run = begin, run
        self.seconds = np.zeros(len(CLASSES))

    def add(self, end: float, name: str) -> None:
        end = max(end, self.at)
        self.seconds[NUMBER_OF_CLASS[name]] += end - self.at
        self.at = end

    def begin_of_turns(self, generation: int, limit: float) -> float | None:
        return self._run.generation(generation).begin(limit)

    def add_turns(self, generation: int, limit: float, reached: int) -> int:
        found = self._run.generation(generation).add_up(self.at, limit, reached)
        self.seconds += found.seconds
        self.at = found.end
        return found.step


@dataclass(frozen=True)
class AddedUp:
    """Iterations, added up.

    Attributes:
        seconds: by class.
        end: where the last stretch ends.
        step: the highest.
    """

    seconds: NDArray[np.float64]
    end: float
    step: int = 0

    @classmethod
    def nothing(cls, at: float) -> AddedUp:
        """No turns; the first stretch will begin at ``at``."""
        return cls(np.zeros(len(CLASSES)), at)

    def plus(self, turns: Iterations, edges: NDArray[np.float64], classes: NDArray[np.int64]) -> AddedUp:
        """Add the turns that follow; edges and classes as of `turn_stretches`."""
        # In order, onto the sums so far: the result is the same to the bit however the turns were read in pieces.
        seconds = np.concatenate([self.seconds, np.diff(edges, axis=1).ravel()])
        sums = np.bincount(np.concatenate([np.arange(len(CLASSES)), classes.ravel()]), seconds, len(CLASSES))
        return AddedUp(sums.astype(np.float64), float(edges[-1, -1]), max(self.step, int(turns["step"].max())))


class TurnSums:
    """Adds up the turns of one generation.

    A turn is final when it lies before the limit up to which it is asked about, and the next one has been written: its
    stretches stay as they are however the file and the limit grow. Final turns are kept as sums, the others as they
    are. Where a question does not continue the one before, which happens when an earlier generation turns out to have
    written one more turn, the file is read again.
    """

    def __init__(self, file: IterationFile) -> None:
        self._file = file
        self._at, self._reached = 0.0, 0
        self._first: float | None = None  # when the first final turn began
        self._sums = AddedUp.nothing(self._at)  # of the final turns
        self._open = NO_TURNS  # the others

    def begin(self, limit: float) -> float | None:
        """Return when the first turn began; None if none began before ``limit``."""
        if self._first is not None and self._sums.end < limit:
            return self._first
        self._restart(self._at, self._reached)
        while True:
            begun = self._open["began"][self._open["began"] < limit]
            if len(begun) or not self._read():
                return float(begun[0]) if len(begun) else None

    def add_up(self, at: float, limit: float, reached: int) -> AddedUp:
        """Add up the turns that began before ``limit``; `begin` has just said that there is one.

        Args: see `turn_stretches`.
        """
        if (at, reached) != (self._at, self._reached):
            self._restart(at, reached)
        self._finish(limit)
        while self._read():
            self._finish(limit)
        begun = self._open[self._open["began"] < limit]
        return self._sums.plus(begun, *self._stretches(begun, limit)) if len(begun) else self._sums

    def _restart(self, at: float, reached: int) -> None:
        """Add up from the first turn on."""
        if self._first is not None:
            self._file.rewind()
            self._open, self._first = NO_TURNS, None
        self._at, self._reached = at, reached
        self._sums = AddedUp.nothing(at)

    def _read(self) -> bool:
        """Read some more turns; False when there are none."""
        piece = self._file.read(_PIECE)
        self._open = np.concatenate([self._open, piece])
        return len(piece) > 0

    def _finish(self, limit: float) -> None:
        """Move the turns that have become final into the sums."""
        if not len(self._open):
            return
        edges, classes = self._stretches(self._open, limit)
        final = (self._open["began"] < limit) & (edges[:, -1] < limit)
        final[-1] = False
        if count := int(np.argmin(final)):
            if self._first is None:
                self._first = float(self._open["began"][0])
            self._sums = self._sums.plus(self._open[:count], edges[:count], classes[:count])
            self._open = self._open[count:].copy()

    def _stretches(self, turns: Iterations, limit: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        return turn_stretches(turns, self._sums.end, limit, self._reached)
