"""Shuffled batches delivered per CPU second, beside a raw numpy gather from the same bytes; one consumer and two."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from drivetrain_pipelines.checksums import block_digests
from drivetrain_pipelines.shards import Manifest, Shard, encode_shard
from drivetrain_pipelines.storage import DatasetFolder

from tests.benchmarks.data_reader import WAYS
from tests.benchmarks.report import report

_ROUNDS, _SECONDS = 5, 3.0
_SAMPLES, _TOKENS, _SHARD_ROWS = 262_144, 1024, 16_384  # 1 GiB in shards of 64 MiB
_IMAGES, _IMAGE_SHARD_ROWS, _SMALLEST, _LARGEST = 100_000, 5000, 4_900, 14_700  # sizes as of small JPEGs, 9.8 KB
_KINDS = {"tokens": "tokens", "images": "image"}  # data set and its column


def main() -> None:
    """Alternate all ways, data sets and numbers of consumers."""
    figures: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _make_tokens(folder / "tokens")
        _make_images(folder / "images")
        for _ in range(_ROUNDS):
            for kind, column in _KINDS.items():
                for consumers in (1, 2):
                    for way in WAYS:
                        rate = _run(way, folder / kind, column, consumers)
                        figures.setdefault(f"{kind}, {consumers} consumer{'s' * (consumers > 1)}, {way}", []).append(
                            rate
                        )
    rows, ratios = [], {}
    for name, rates in figures.items():
        raw = figures[name.rsplit(", ", 1)[0] + ", raw"]
        ratios[name] = statistics.median(rate / bound for rate, bound in zip(rates, raw, strict=True))
        rows.append([name, f"{statistics.median(rates) / 1000:.0f}", f"{ratios[name]:.3f}"])
    report("data", ["", "k samples per CPU second", "ratio"], rows, {"samples_per_cpu_s": figures, "ratios": ratios})


def _run(way: str, folder: Path, column: str, consumers: int) -> float:
    command = [sys.executable, "-m", "tests.benchmarks.data_reader", way, str(folder), column, str(_SECONDS)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(consumers)]
    return statistics.mean(json.loads(process.communicate()[0])["samples_per_cpu_s"] for process in running)


def _make_tokens(folder: Path) -> None:
    folder.mkdir()
    tokens = np.random.default_rng(0).integers(0, 50_000, (_SAMPLES, _TOKENS), dtype=np.int32)
    np.save(folder / "raw.npy", tokens)
    parts = (tokens[first : first + _SHARD_ROWS] for first in range(0, _SAMPLES, _SHARD_ROWS))
    batches = [
        pa.record_batch({"tokens": pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), _TOKENS)})
        for part in parts
    ]
    _write(folder / "shards", batches)


def _make_images(folder: Path) -> None:
    """Random bytes in the sizes of small JPEGs: nothing here decodes them."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(draw.integers(_SMALLEST, _LARGEST, _IMAGES))]).astype(np.int64)
    values = draw.integers(0, 256, offsets[-1], dtype=np.uint8)
    np.save(folder / "raw.npy", values)
    np.save(folder / "offsets.npy", offsets)
    batches = []
    for first in range(0, _IMAGES, _IMAGE_SHARD_ROWS):
        own = offsets[first : first + _IMAGE_SHARD_ROWS + 1]
        buffers = [None, pa.py_buffer(own - own[0]), pa.py_buffer(values[own[0] : own[-1]].copy())]
        batches.append(
            pa.record_batch({"image": pa.LargeBinaryArray.from_buffers(pa.large_binary(), _IMAGE_SHARD_ROWS, buffers)})
        )
    _write(folder / "shards", batches)


def _write(path: Path, batches: list[pa.RecordBatch]) -> None:
    folder, shards = DatasetFolder(str(path)), []
    for number, batch in enumerate(batches):
        content = encode_shard(batch)
        name = f"train-{number:05d}.arrow"
        folder.write(name, content)
        shards.append(Shard(name, batch.num_rows, content.size, block_digests(memoryview(content))))
    schema = pa.ipc.open_file(content).schema
    Manifest("bench", "v1", schema, {"train": shards}).write(folder)


if __name__ == "__main__":
    main()
