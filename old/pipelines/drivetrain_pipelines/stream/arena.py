"""All shards of a split as one array per column. Shards are mapped and verified when they are first needed."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from drivetrain_pipelines.errors import CorruptFileError
from drivetrain_pipelines.order.permutation import Int64Array
from drivetrain_pipelines.storage.checksums import verify_bytes
from drivetrain_pipelines.storage.shards import Shard
from drivetrain_pipelines.stream.columns import Allocate, Column, Columns, ShardFile, Values, column_of

Index = dict[str, Int64Array]


class ShardArena:
    """Read-only rows of many shards. Nothing is copied until a batch is gathered.

    Args:
        schema: schema of every shard.
        shards: in manifest order, at least one.
    """

    def __init__(self, schema: pa.Schema, shards: Sequence[Shard]) -> None:
        self._schema, self._shards = schema, shards
        self._rows = np.array([shard.rows for shard in shards], np.int64)
        largest = max(shard.bytes for shard in shards)
        self._columns: dict[str, Column] = {
            field.name: column_of(field.type, self._rows.tolist(), largest) for field in schema
        }
        self.mapped: set[int] = set()

    @property
    def rows(self) -> int:
        """Number of rows over all shards."""
        return int(self._rows.sum())

    @property
    def shards(self) -> int:
        """Number of shards, mapped or not."""
        return len(self._shards)

    @property
    def bytes_per_row(self) -> int:
        """Average bytes per row."""
        return self.bytes_of(range(self.shards)) // max(1, self.rows)

    def bytes_of(self, numbers: Iterable[int]) -> int:
        """Return the total bytes of some shards."""
        return sum(self._shards[number].bytes for number in numbers)

    def map_shard(self, number: int, path: Path) -> None:
        """Verify every byte of a shard and make its rows readable. Does nothing for a mapped shard.

        Raises:
            CorruptFileError: names the file and the block that differs.
        """
        if number in self.mapped:
            return
        shard = self._shards[number]
        descriptor = _open(path, shard)
        try:
            content = mmap.mmap(descriptor, shard.bytes, prot=mmap.PROT_READ)  # freed with its last view
            verify_bytes(str(path), memoryview(content), shard.xxh3)
            buffer = pa.py_buffer(content)
            batch = ipc.open_file(buffer).get_batch(0)
            file = ShardFile(str(path), descriptor, shard.bytes, buffer.address)
            if batch.schema != self._schema or batch.num_rows != shard.rows:
                raise CorruptFileError(str(path), "its columns or its number of rows differ from the manifest")
            for name, column in self._columns.items():
                column.map_shard(number, file, batch.column(name))
        finally:
            os.close(descriptor)
        self.mapped.add(number)

    def unmap_shard(self, number: int) -> None:
        """Unmap a shard; its file may then be removed."""
        self.mapped.remove(number)
        for column in self._columns.values():
            column.unmap_shard(number)

    def index(self, shards: Int64Array, rows: Int64Array) -> Index:
        """Return the index that `gather` needs for rows in mapped shards; int64 ``[n]`` each, can be sliced.

        Raises:
            IndexError: a row outside its shard (reading it would end the process).
        """
        if ((rows < 0) | (rows >= self._rows[shards])).any():
            raise IndexError(f"a row is outside its shard; the split has {self.rows} rows")
        return {name: column.index(shards, rows) for name, column in self._columns.items()}

    def buffers(self, rows: int, allocate: Allocate = np.zeros) -> dict[str, Values | None]:
        """Allocate arrays for `gather` to fill."""
        return {name: column.buffer(rows, allocate) for name, column in self._columns.items()}

    def gather(self, index: Index, part: slice, out: dict[str, Values | None]) -> Columns:
        """Copy the rows of a part of an index into ``out``: one gather per column.

        Args:
            out: result of `buffers` for as many rows as ``part`` has.
        """
        return {name: column.gather(index[name][part], out[name]) for name, column in self._columns.items()}

    def close(self) -> None:
        """Unmap all shards. Gathered batches stay valid: they are copies."""
        for column in self._columns.values():
            column.close()


def _open(path: Path, shard: Shard) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError as error:
        raise CorruptFileError(str(path), "the file is missing") from error
    if (size := os.fstat(descriptor).st_size) != shard.bytes:
        os.close(descriptor)
        raise CorruptFileError(str(path), f"it has {size} bytes instead of {shard.bytes}")
    return descriptor
