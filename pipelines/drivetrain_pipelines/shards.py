"""Prepared datasets: Arrow IPC file shards and the manifest that makes them exist."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import ipc

from drivetrain_pipelines.checksums import atomic_write, file_digests, read_json, verify_file, write_json
from drivetrain_pipelines.errors import CorruptFileError

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Shard:
    """One Arrow IPC file: a single uncompressed record batch of fixed-width columns."""

    file: str
    rows: int
    bytes: int
    xxh3: list[str]

    def verify(self, folder: Path) -> None:
        """Raises `CorruptFileError` when the file is not what was written."""
        verify_file(folder / self.file, self.bytes, self.xxh3)


@dataclass(frozen=True)
class Manifest:
    """What a dataset version consists of. Written last: a folder without it is not a dataset."""

    name: str
    version: str
    splits: dict[str, list[Shard]]
    statistics: dict[str, float] = field(default_factory=dict)
    made_from: dict[str, Any] = field(default_factory=dict)

    def rows(self, split: str) -> int:
        """Samples in a split."""
        return sum(shard.rows for shard in self.splits[split])

    def check_sizes(self, folder: Path) -> Manifest:
        """This manifest, if every shard is there in full length (a mapped file that is too short would be a fault).

        Raises:
            CorruptFileError: names the shard.
        """
        for shard in (shard for shards in self.splits.values() for shard in shards):
            path = folder / shard.file
            if not path.is_file() or path.stat().st_size != shard.bytes:
                raise CorruptFileError(str(path), f"it is missing or does not have {shard.bytes} bytes")
        return self

    def write(self, folder: Path) -> None:
        """Commit the dataset in ``folder``."""
        splits = {name: [vars(shard) for shard in shards] for name, shards in self.splits.items()}
        write_json(folder / MANIFEST, {**vars(self), "splits": splits})

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises `CorruptFileError` when there is no valid manifest in ``folder``."""
        content = read_json(folder / MANIFEST)
        splits = {name: [Shard(**shard) for shard in shards] for name, shards in content.pop("splits").items()}
        return cls(splits=splits, **content)


def write_shard(folder: Path, file: str, batch: pa.RecordBatch) -> Shard:
    """Write one record batch as an Arrow IPC file, atomically; returns what the manifest keeps of it."""
    with atomic_write(folder / file) as sink, ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    path = folder / file
    return Shard(file, batch.num_rows, path.stat().st_size, file_digests(path))


def unigram_entropy(counts: list[int]) -> float:
    """Entropy of a token distribution in nats: the loss of the best model that ignores all context."""
    total = sum(counts)
    return -sum(count / total * math.log(count / total) for count in counts if count)
