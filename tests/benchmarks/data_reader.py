"""One consumer of shuffled batches in its own process; prints samples per CPU second.

Run by the data benchmark as ``python -m tests.benchmarks.data_reader READER FOLDER COLUMN SECONDS``; with ``--write``
the reader's library writes its own copy of the samples instead.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc

from tests.benchmarks.data_peers import BATCH, PEERS, Read

_WARM_UP_S = 1.0


def raw(folder: Path, column: str) -> Iterator[int]:
    """Read the bound: random rows of a memory-mapped array (or slices of a mapped file) copied to a reused buffer."""
    draw = np.random.default_rng(0)
    if column == "tokens":
        rows = np.load(folder / "raw.npy", mmap_mode="r")
        out = np.empty((BATCH, rows.shape[1]), rows.dtype)
        while True:
            for index in draw.permutation(len(rows))[: len(rows) // BATCH * BATCH].reshape(-1, BATCH):
                np.take(rows, index, axis=0, out=out, mode="clip")
                yield BATCH
    values, offsets = np.load(folder / "raw.npy", mmap_mode="r"), np.load(folder / "offsets.npy")
    view, largest = memoryview(values), int(np.diff(offsets).max())
    buffer = bytearray(BATCH * largest)
    begin, end = offsets[:-1].tolist(), offsets[1:].tolist()
    target = memoryview(buffer)
    while True:
        for index in draw.permutation(len(begin))[: len(begin) // BATCH * BATCH].reshape(-1, BATCH).tolist():
            at = 0
            for row in index:
                size = end[row] - begin[row]
                target[at : at + size] = view[begin[row] : end[row]]
                at += size
            yield BATCH


def raw_tuned(folder: Path, column: str) -> Iterator[int]:
    """Read the bound with the optimizations of our gather: touch rows before the copy; gather bytes with Arrow."""
    draw = np.random.default_rng(0)
    if column == "tokens":
        rows = np.load(folder / "raw.npy", mmap_mode="r")
        numbers, width = rows.reshape(-1), rows.shape[1]
        out = np.empty((BATCH, width), rows.dtype)
        while True:
            for index in draw.permutation(len(rows))[: len(rows) // BATCH * BATCH].reshape(-1, BATCH):
                numbers.take(index * width, mode="clip")
                rows.take(index, axis=0, out=out, mode="clip")
                yield BATCH
    values, offsets = np.load(folder / "raw.npy", mmap_mode="r"), np.load(folder / "offsets.npy")
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(values)]
    array = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)
    while True:
        for index in draw.permutation(len(array))[: len(array) // BATCH * BATCH].reshape(-1, BATCH):
            yield len(pc.take(array, pa.array(index), boundscheck=False))


def drivetrain(folder: Path, column: str) -> Iterator[int]:
    """Read with our reader: order, prefetch, gather and hand-over included."""
    from drivetrain_pipelines.stream.dataset import Dataset  # imported here: environments of peers do not have it
    from drivetrain_pipelines.stream.reader import StreamReader

    dataset = Dataset(str(folder / "shards"))
    arena, files = dataset.open("train")
    reader = StreamReader(arena, files, dataset.order("train", [1], 0, 32, 1 << 14), BATCH, slice(0, BATCH), 0)
    try:
        for batch in reader:
            assert len(batch.columns[column]) == BATCH
            yield BATCH
    finally:
        reader.close()
        arena.close()


WAYS: dict[str, Read] = {"raw": raw, "raw, with the tricks of ours": raw_tuned, "drivetrain": drivetrain}


def main() -> None:
    """Read for some seconds after a warm-up; CPU time of all threads and child processes counts."""
    way, folder, column = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    if sys.argv[4] == "--write":
        PEERS[way][0](folder, folder / way, column)
        return
    batches = WAYS[way](folder, column) if way in WAYS else PEERS[way][1](folder / way, column)
    next(batches)
    until = time.perf_counter() + _WARM_UP_S
    while time.perf_counter() < until:
        next(batches)
    samples, cpu, began = 0, _cpu_s(), time.perf_counter()
    while time.perf_counter() - began < float(sys.argv[4]):
        samples += next(batches)
    cpu = _cpu_s() - cpu
    print(json.dumps({"samples_per_cpu_s": samples / cpu, "samples_per_s": samples / (time.perf_counter() - began)}))


def _cpu_s() -> float:
    """Return the CPU seconds of this process and its descendants."""
    seconds = time.process_time()
    for child in psutil.Process().children(recursive=True):
        times = child.cpu_times()
        seconds += times.user + times.system
    return seconds


if __name__ == "__main__":
    main()
