"""Epochs over a dataset in object storage: cold, warm, with faults, and during an outage of a minute.

A real S3 server on loopback. A proxy in front of it injects faults and the outage; its own cold epoch is measured, too.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from drivetrain_pipelines.spec import StorageSpec
from drivetrain_pipelines.storage.folder import StorageFolder
from drivetrain_pipelines.stream.dataset import CacheSettings, Dataset
from drivetrain_pipelines.stream.reader import StreamReader

from tests.benchmarks.data import write
from tests.benchmarks.report import report
from tests.s3 import S3, s3_server

_ROUNDS = 3
_SHARDS, _ROWS, _TOKENS = 32, 4096, 1024  # 512 MiB in shards of 16 MiB
_BATCH = 64
_STEPS = _SHARDS * _ROWS // _BATCH
_FAULT = 0.05  # share of requests with each kind of fault
_OUTAGE_S, _STEP_S = 60.0, 0.1  # the consumer computes for a tenth of a second per step


def main() -> None:
    """Alternate the kinds of epoch; then run one outage."""
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "server").mkdir()
        draw = np.random.default_rng(0)
        tokens = [draw.integers(0, 50_000, _ROWS * _TOKENS, dtype=np.int32) for _ in range(_SHARDS)]
        batches = [pa.record_batch({"tokens": pa.FixedSizeListArray.from_arrays(pa.array(t), _TOKENS)}) for t in tokens]
        write(folder / "local", batches)
        with s3_server(folder / "server") as s3:
            _upload(folder / "local", s3)
            expected = list(_epoch(Dataset(str(folder / "local"))))
            for number in range(_ROUNDS):
                for name, found in _round(folder, s3, number, expected):
                    rates.setdefault(name, []).append(found)
                print(f"round {number + 1} of {_ROUNDS} is done", flush=True)
            longest_s = _outage(folder, s3)
    figures: dict[str, object] = {"mib_per_s": rates, "outage_s": _OUTAGE_S, "longest_wait_in_it_s": longest_s}
    rows = [
        [name, f"{float(np.median(found)):.0f}", f"{float(np.median(np.divide(found, rates['local']))):.3f}"]
        for name, found in rates.items()
    ]
    rows.append([f"outage of {_OUTAGE_S:g} s: longest wait of a step", f"{longest_s:.2f} s", ""])
    report("storage", ["epoch, verified", "MiB/s", "ratio to local"], rows, figures)


def _round(folder: Path, s3: S3, number: int, expected: list[int]) -> Iterator[tuple[str, float]]:
    """Run every kind of epoch once, and check that it delivers the same data as the local dataset."""
    yield "local", _rate(Dataset(str(folder / "local")), expected)
    cache = folder / f"cache-{number}"
    yield "cold", _rate(_remote(s3, s3.direct, cache), expected)
    yield "warm", _rate(_remote(s3, s3.direct, cache), expected)
    yield "cold, through the proxy", _rate(_remote(s3, s3.storage, folder / f"proxy-{number}"), expected)
    dataset = _remote(s3, s3.storage, folder / f"faults-{number}")
    faults = s3.faults
    faults.slow_down = faults.internal_error = faults.cut = faults.truncated = faults.flipped = _FAULT
    faults.slow_first_byte = _FAULT
    yield "cold, through the proxy, 30 % of requests faulty", _rate(dataset, expected)
    faults.__init__()  # type: ignore[misc]


def _rate(dataset: Dataset, expected: list[int]) -> float:
    began = time.perf_counter()
    assert list(_epoch(dataset)) == expected
    return _STEPS * _BATCH * _TOKENS * 4 / (1 << 20) / (time.perf_counter() - began)


def _epoch(dataset: Dataset) -> Iterator[int]:
    """Yield one number of each batch, in order."""
    arena, files = dataset.open("train")
    reader = StreamReader(arena, files, dataset.order("train", [1], 0, 8, 1024), _BATCH, slice(0, _BATCH), 0)
    try:
        for batch, _ in zip(reader, range(_STEPS), strict=False):
            tokens = batch.columns["tokens"]
            assert isinstance(tokens, np.ndarray)
            yield int(tokens[:, 0].astype(np.int64).sum())
    finally:
        reader.close()
        arena.close()


def _outage(folder: Path, s3: S3) -> float:
    """Return the longest wait of a step when the storage is unavailable for a minute during a cold epoch."""
    steps = _epoch(_remote(s3, s3.storage, folder / "outage"))
    for _ in range(3):
        next(steps)
    s3.faults.down = True
    back = threading.Timer(_OUTAGE_S, lambda: setattr(s3.faults, "down", False))
    back.start()
    longest = 0.0
    while back.is_alive():
        began = time.perf_counter()
        next(steps)
        longest = max(longest, time.perf_counter() - began)
        time.sleep(_STEP_S)
    for _ in steps:
        pass
    return longest


def _remote(s3: S3, storage: StorageSpec, cache: Path) -> Dataset:
    return Dataset(f"{s3.url}/bench/v1", storage, CacheSettings(cache, 1 << 30))


def _upload(local: Path, s3: S3) -> None:
    target = StorageFolder(f"{s3.url}/bench/v1", s3.direct)
    for path in local.iterdir():
        target.write(path.name, path.read_bytes())


if __name__ == "__main__":
    main()
