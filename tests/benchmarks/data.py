"""Shuffled batches per CPU second: Drivetrain and its peers, compared with a raw numpy gather of the same bytes.

Also measures the time to start in the middle of a very large dataset.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from drivetrain_pipelines.storage.checksums import block_digests
from drivetrain_pipelines.storage.folder import StorageFolder
from drivetrain_pipelines.storage.shards import Manifest, Shard, encode_shard
from drivetrain_pipelines.stream.dataset import Dataset
from drivetrain_pipelines.stream.reader import StreamReader

from tests.benchmarks.data_peers import BATCH, PEERS
from tests.benchmarks.data_reader import WAYS
from tests.benchmarks.report import report

_ROUNDS, _SECONDS = 5, 3.0
_SAMPLES, _TOKENS, _SHARD_ROWS = 131_072, 1024, 16_384  # 512 MiB in shards of 64 MiB
_IMAGES, _IMAGE_SHARD_ROWS, _SMALLEST, _LARGEST = 50_000, 5000, 4_900, 14_700  # sizes as of small JPEGs, 9.8 KB
_COLUMNS = {"tokens": "tokens", "images": "image"}  # of each data set
_SEEK_SHARDS, _SEEK_ROWS = 20_000, 50_000  # a billion samples
_MOSAICML = Path(__file__).parents[2] / ".venv-mosaicml" / "bin" / "python"  # its pins exclude ours


def main() -> None:
    """Alternate all readers, data sets and numbers of consumers."""
    rates: dict[tuple[str, int, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        seeks = _seeks(folder / "seek")
        _make_tokens(folder / "tokens")
        _make_images(folder / "images")
        for way in PEERS:
            for kind in _COLUMNS:
                print(f"{way} writes its {kind}", flush=True)
                subprocess.run([*_command(way, folder, kind), "--write"], check=True, capture_output=True)
        runs = [(kind, consumers, way) for kind in _COLUMNS for consumers in (1, 2) for way in WAYS]
        runs += [(kind, 1, way) for kind in _COLUMNS for way in PEERS]
        for number in range(_ROUNDS):
            for run in runs:
                rates.setdefault(run, []).append(_run(folder, *run))
            print(f"round {number + 1} of {_ROUNDS} is done", flush=True)
    rows, figures = [], {}
    for (kind, consumers, way), found in sorted(rates.items()):
        bound = rates[kind, consumers, "raw"]
        ratio = statistics.median(rate / most for rate, most in zip(found, bound, strict=True))
        rows.append([kind, str(consumers), way, f"{statistics.median(found) / 1000:.1f}", f"{ratio:.3f}"])
        figures[f"{kind}, {consumers}, {way}"] = {"samples_per_cpu_s": found, "median_ratio": ratio}
    for kind in _COLUMNS:
        best = max(PEERS, key=lambda way: figures[f"{kind}, 1, {way}"]["median_ratio"])
        theirs = rates[kind, 1, best]
        ratio = statistics.median(o / t for o, t in zip(rates[kind, 1, "drivetrain"], theirs, strict=True))
        rows.append([kind, "1", f"drivetrain / the best peer ({best})", "", f"{ratio:.2f}"])
        figures[f"{kind}, best peer"] = {"name": best, "median_ratio": ratio}
    for where, cpu_s in seeks.items():
        rows.append(["seek", "1", f"to {where} of 1e9 samples", f"{cpu_s * 1000:.1f} ms CPU", ""])
    report(
        "data", ["", "consumers", "", "k samples per CPU second", "ratio to raw"], rows, {**figures, "seek_s": seeks}
    )


def _run(folder: Path, kind: str, consumers: int, way: str) -> float:
    command = [*_command(way, folder, kind), str(_SECONDS)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(consumers)]
    last_lines = [process.communicate()[0].splitlines()[-1] for process in running]
    return statistics.mean(json.loads(line)["samples_per_cpu_s"] for line in last_lines)


def _command(way: str, folder: Path, kind: str) -> list[str]:
    python = str(_MOSAICML if way == "mosaicml" else sys.executable)
    return [python, "-W", "ignore", "-m", "tests.benchmarks.data_reader", way, str(folder / kind), _COLUMNS[kind]]


def _seeks(folder: Path) -> dict[str, float]:
    """Return the CPU seconds from an opened reader's start to its first batch, at several positions of 1e9 samples.

    The 20,000 shards are one file under many numbers; only the disk accesses differ from real shards.
    """
    shard = write(folder, [pa.record_batch({"x": pa.array(np.arange(_SEEK_ROWS))})])[0]
    dataset = Dataset(str(folder))
    dataset.manifest.splits["train"][:] = [shard] * _SEEK_SHARDS
    order = dataset.order("train", [1], 0, 32, 1 << 14)
    taken = {}
    for where, start in {"the begin": 0, "the middle": 500_000_000, "the end": 999_999_936}.items():
        arena, files = dataset.open("train")
        began = time.process_time()
        reader = StreamReader(arena, files, order, BATCH, slice(0, BATCH), start)
        next(iter(reader))
        taken[where] = time.process_time() - began
        reader.close()
        arena.close()
    return taken


def _make_tokens(folder: Path) -> None:
    folder.mkdir()
    tokens = np.random.default_rng(0).integers(0, 50_000, (_SAMPLES, _TOKENS), dtype=np.int32)
    np.save(folder / "raw.npy", tokens)
    parts = (tokens[first : first + _SHARD_ROWS] for first in range(0, _SAMPLES, _SHARD_ROWS))
    batches = [
        pa.record_batch({"tokens": pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), _TOKENS)})
        for part in parts
    ]
    write(folder / "shards", batches)


def _make_images(folder: Path) -> None:
    """Write random bytes in the sizes of small JPEGs; nothing decodes them."""
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
    write(folder / "shards", batches)


def write(path: Path, batches: list[pa.RecordBatch]) -> list[Shard]:
    """Write a dataset with one shard per batch."""
    folder, shards = StorageFolder(str(path)), []
    for number, batch in enumerate(batches):
        content = encode_shard(batch)
        name = f"train-{number:05d}.arrow"
        folder.write(name, content)
        shards.append(Shard(name, batch.num_rows, content.size, block_digests(memoryview(content))))
    schema = pa.ipc.open_file(content).schema
    Manifest("bench", "v1", schema, {"train": shards}).write(folder)
    return shards


if __name__ == "__main__":
    main()
