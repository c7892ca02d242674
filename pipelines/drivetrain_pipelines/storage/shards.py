"""Prepared datasets: Arrow IPC file shards, and the manifest that commits them."""

from __future__ import annotations

import math
from base64 import b64decode, b64encode
from dataclasses import dataclass, field

import pyarrow as pa
from pyarrow import ipc

from drivetrain_pipelines.errors import CorruptFileError
from drivetrain_pipelines.storage.arrow_types import is_ragged, row_of
from drivetrain_pipelines.storage.folder import StorageFolder
from drivetrain_pipelines.storage.json_files import JsonObject

MANIFEST = "manifest.json"
_LARGEST_ALIGNMENT = 1 << 16  # of memory pages on any machine


@dataclass(frozen=True)
class Shard:
    """One Arrow IPC file: a single uncompressed record batch.

    Attributes:
        xxh3: digest of each block of 8 MiB.
        stream: index of the source it was made from, where a job mixes several. (A key of stored manifests.)
    """

    file: str
    rows: int
    bytes: int
    xxh3: list[str]
    stream: int = 0


@dataclass(frozen=True)
class Manifest:
    """The contents of a dataset version. Written last: a folder without a manifest is not a dataset.

    Attributes:
        schema: schema of every shard.
        splits: shards of each split, grouped by source.
        statistics: statistics of the data, such as ``vocab_size``.
        made_from: everything that the version depends on.
        classes: names of the labels 0, 1, ...
        skipped: the first bad records that were left out; ``statistics`` counts all.
        notes: sentences about files that were ignored.
    """

    name: str
    version: str
    schema: pa.Schema
    splits: dict[str, list[Shard]]
    statistics: dict[str, float] = field(default_factory=dict)
    made_from: JsonObject = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def rows(self, split: str) -> int:
        """Return the number of samples in a split."""
        return sum(shard.rows for shard in self.splits[split])

    def check_sizes(self, folder: StorageFolder) -> Manifest:
        """Return this manifest if every shard exists in full length.

        Raises:
            CorruptFileError: names the shard.
        """
        for shard in (shard for shards in self.splits.values() for shard in shards):
            if folder.size(shard.file) != shard.bytes:
                raise CorruptFileError(folder.url(shard.file), f"it is missing or does not have {shard.bytes} bytes")
        return self

    def write(self, folder: StorageFolder) -> None:
        """Commit the dataset in ``folder``."""
        splits = {name: [vars(shard) for shard in shards] for name, shards in self.splits.items()}
        folder.write_json(MANIFEST, {**vars(self), "schema": schema_to_text(self.schema), "splits": splits})

    @classmethod
    def read(cls, folder: StorageFolder) -> Manifest:
        """Read the manifest of ``folder``. Raises `CorruptFileError` when there is no valid one."""
        content = folder.read_json(MANIFEST)
        splits = {name: [Shard(**shard) for shard in shards] for name, shards in content.pop("splits").items()}
        return cls(schema=schema_from_text(content.pop("schema")), splits=splits, **content)


def schema_to_text(schema: pa.Schema) -> str:
    """Encode an Arrow schema as text for JSON."""
    return b64encode(schema.serialize()).decode()


def schema_from_text(text: str) -> pa.Schema:
    """Decode the result of `schema_to_text`."""
    return ipc.read_schema(pa.py_buffer(b64decode(text)))


def encode_shard(batch: pa.RecordBatch) -> pa.Buffer:
    """Encode a record batch as an Arrow IPC file.

    Columns are ordered by the power of two that divides their row width, the largest first and those of varying
    width last. The rows of every shard, however many it has, can then be mapped onto one grid.
    """
    names = sorted(batch.schema.names, key=lambda name: _alignment(batch.schema.field(name).type), reverse=True)
    ordered = pa.record_batch([batch.column(name) for name in names], names)
    sink = pa.BufferOutputStream()
    with ipc.new_file(sink, ordered.schema) as writer:
        writer.write_batch(ordered)
    return sink.getvalue()


def _alignment(kind: pa.DataType) -> int:
    if is_ragged(kind):
        return 0
    dtype, shape = row_of(kind)
    return math.gcd(_LARGEST_ALIGNMENT, dtype.itemsize * math.prod(shape))


def unigram_entropy(counts: list[int]) -> float:
    """Compute the entropy of a token distribution in nats: the loss of the best model without context."""
    total = sum(counts)
    return -sum(count / total * math.log(count / total) for count in counts if count)
