"""What the turns of the training loop are spent on, as rank 0 sees it: a file a generation, a record a turn.

The file grows while it is read. What a rank that was killed has not written is what its last turn was spent on.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

# Seconds of a turn, in the order in which they are spent; a turn ends with step ``step`` done, evaluated and saved.
PARTS = ("data", "compute", "communicate", "evaluate", "save")
TURN = np.dtype([("step", "<i8"), ("began", "<f8"), *((part, "<f4") for part in PARTS)])

Turns = NDArray[np.void]  # records of `TURN`: ``began`` in seconds since the epoch


class StepTimes:
    """Writes the turns of one generation.

    Args:
        folder: of the run's step times; None on ranks that only measure.
        generation: of this process.
    """

    def __init__(self, folder: Path | None, generation: int) -> None:
        self._file: BinaryIO | None = None
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = _path(folder, generation).open("ab", buffering=0)
        self._began, self._part, self._since = time.time(), "", 0.0
        self._seconds = dict.fromkeys(PARTS, 0.0)

    def enter(self, part: str) -> None:
        """What follows counts as ``part``, one of `PARTS`."""
        now = time.perf_counter()
        if self._part:
            self._seconds[self._part] += now - self._since
        self._part, self._since = part, now

    def end_turn(self, step: int, communicated_s: float) -> None:
        """Write the turn, ``communicated_s`` of whose computing were communication."""
        self.enter("")
        self._seconds["compute"] -= communicated_s
        self._seconds["communicate"] += communicated_s
        if self._file:
            record = (step, self._began, *(self._seconds[part] for part in PARTS))
            self._file.write(np.array(record, TURN).tobytes())
        self._began, self._part, self._since = time.time(), "", 0.0
        self._seconds = dict.fromkeys(PARTS, 0.0)

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()


class TurnFile:
    """Reads the turns of one generation in pieces, while they are written.

    Args:
        folder: of the run's step times; neither it nor the file need be there yet.
        generation: whose turns.
    """

    def __init__(self, folder: Path, generation: int) -> None:
        self._path, self._read = _path(folder, generation), 0

    def read(self, most: int) -> Turns:
        """Return the next turns, at most ``most``; none where no more were written."""
        try:
            there = self._path.stat().st_size // TURN.itemsize
        except FileNotFoundError:
            there = 0
        count = min(most, there - self._read)
        if count <= 0:
            return np.empty(0, TURN)
        found = np.fromfile(self._path, TURN, count, offset=self._read * TURN.itemsize)
        self._read += len(found)
        return found

    def rewind(self) -> None:
        """Begin with the first turn again."""
        self._read = 0


def read_turns(folder: Path) -> dict[int, Turns]:
    """The turns of each generation, in the order of generations."""
    found = {}
    for path in sorted(folder.glob("*.times")):
        data = path.read_bytes()
        found[int(path.stem)] = np.frombuffer(data[: len(data) - len(data) % TURN.itemsize], TURN)
    return found


def _path(folder: Path, generation: int) -> Path:
    return folder / f"{generation:06d}.times"
