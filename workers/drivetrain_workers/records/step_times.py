"""Times of the iterations of the training loop, measured by rank 0: one file per generation, one record per iteration.

The file grows while it is read. The time after the last record of a killed rank belongs to its last iteration.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

# Seconds of an iteration, in order; it ends with step ``step`` done, evaluated and saved.
PARTS = ("data", "compute", "communicate", "evaluate", "save")
ITERATION = np.dtype([("step", "<i8"), ("began", "<f8"), *((part, "<f4") for part in PARTS)])

Iterations = NDArray[np.void]  # records of `ITERATION`: ``began`` in seconds since the epoch


class StepTimes:
    """Writes the iterations of one generation.

    Args:
        folder: folder of the run's step times; None on ranks that only measure.
        generation: generation of this process.
    """

    def __init__(self, folder: Path | None, generation: int) -> None:
        self._file: BinaryIO | None = None
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = _path(folder, generation).open("ab", buffering=0)
        self._began, self._part, self._since = time.time(), "", 0.0
        self._seconds = dict.fromkeys(PARTS, 0.0)

    def enter(self, part: str) -> None:
        """Count the following time as ``part``, one of `PARTS`."""
        now = time.perf_counter()
        if self._part:
            self._seconds[self._part] += now - self._since
        self._part, self._since = part, now

    def end_iteration(self, step: int, communicated_s: float) -> None:
        """Write the iteration, with ``communicated_s`` of its compute time as communication."""
        self.enter("")
        self._seconds["compute"] -= communicated_s
        self._seconds["communicate"] += communicated_s
        if self._file:
            record = (step, self._began, *(self._seconds[part] for part in PARTS))
            self._file.write(np.array(record, ITERATION).tobytes())
        self._began, self._part, self._since = time.time(), "", 0.0
        self._seconds = dict.fromkeys(PARTS, 0.0)

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()


class IterationFile:
    """Reads the iterations of one generation in pieces, while they are written.

    Args:
        folder: folder of the run's step times; need not exist yet.
        generation: generation to read.
    """

    def __init__(self, folder: Path, generation: int) -> None:
        self._path, self._read = _path(folder, generation), 0

    def read(self, max_iterations: int) -> Iterations:
        """Return the next iterations, at most ``max_iterations``; none if no more were written."""
        try:
            available = self._path.stat().st_size // ITERATION.itemsize
        except FileNotFoundError:
            available = 0
        count = min(max_iterations, available - self._read)
        if count <= 0:
            return np.empty(0, ITERATION)
        found = np.fromfile(self._path, ITERATION, count, offset=self._read * ITERATION.itemsize)
        self._read += len(found)
        return found

    def rewind(self) -> None:
        """Start again with the first iteration."""
        self._read = 0


def read_iterations(folder: Path) -> dict[int, Iterations]:
    """Return the iterations of each generation, in the order of generations."""
    found = {}
    for path in sorted(folder.glob("*.times")):
        data = path.read_bytes()
        found[int(path.stem)] = np.frombuffer(data[: len(data) - len(data) % ITERATION.itemsize], ITERATION)
    return found


def _path(folder: Path, generation: int) -> Path:
    return folder / f"{generation:06d}.times"
