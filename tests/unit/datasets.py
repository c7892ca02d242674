"""Small datasets for tests. Every value in a shard identifies its row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from drivetrain_pipelines.storage.checksums import block_digests
from drivetrain_pipelines.storage.folder import StorageFolder
from drivetrain_pipelines.storage.shards import Manifest, Shard, encode_shard
from drivetrain_pipelines.stream.dataset import Dataset

WIDTH = 5


def rows_of(first: int, count: int) -> pa.RecordBatch:
    """Return three columns: row r has tokens r * 10 .. r * 10 + 4, a label r, and r % 7 bytes of value r."""
    numbers = np.arange(first, first + count)
    tokens = (numbers[:, None] * 10 + np.arange(WIDTH)).astype(np.int32)
    return pa.record_batch(
        {
            "label": pa.array(numbers, pa.int64()),
            "tokens": pa.FixedSizeListArray.from_arrays(pa.array(tokens.reshape(-1)), WIDTH),
            "blob": pa.array([bytes([row % 256]) * (row % 7) for row in numbers.tolist()], pa.large_binary()),
        }
    )


def make_dataset(folder: Path, rows: list[int], sources: list[int] | None = None) -> Dataset:
    """Create a dataset version whose training split has shards with these numbers of rows."""
    place = StorageFolder(str(folder))
    shards, first, schema = [], 0, None
    for number, count in enumerate(rows):
        content = encode_shard(rows_of(first, count))
        place.write(f"train-{number:05d}.arrow", content)
        source = sources[number] if sources else 0
        digests = block_digests(memoryview(content))
        shards.append(Shard(f"train-{number:05d}.arrow", count, content.size, digests, source))
        schema = pa.ipc.open_file(content).schema
        first += count
    splits = {"train": shards, "eval": shards[:1]}
    Manifest("toy", "v1", schema, splits, {"vocab_size": 5.0}, notes=["data.source: 2 ignored"]).write(place)
    return Dataset(str(folder))


def assert_rows(columns: dict, rows: list[int]) -> None:
    """Check that the columns contain exactly these rows."""
    assert columns["label"][:, 0].tolist() == rows
    assert columns["tokens"].tolist() == [[row * 10 + i for i in range(WIDTH)] for row in rows]
    blobs = [bytes(columns["blob"].row(i)) for i in range(len(rows))]
    assert blobs == [bytes([row % 256]) * (row % 7) for row in rows]
