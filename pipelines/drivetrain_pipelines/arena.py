"""Many shard files mapped side by side into one address range, so that a shuffled batch is one gather per column.

Each shard gets a slot of equal size. Slots are a multiple of every column's row width, so row ``r`` of the shard in
slot ``s`` is row ``s * rows_per_slot + r`` of one big array that no copy was made for. Unused rows between shards are
never addressed.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import ipc

from drivetrain_pipelines.errors import CorruptFileError

_PROT_NONE, _MAP_FIXED, _MAP_NORESERVE = 0, 0x10, 0x4000  # Linux; absent from Python's mmap module
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


@dataclass(frozen=True)
class _Column:
    """Where a fixed-width column lies in every shard file, and the shape of one row."""

    name: str
    dtype: np.dtype[Any]
    width: int
    offset: int

    @property
    def row_bytes(self) -> int:
        return self.width * self.dtype.itemsize


class ShardArena:
    """Read-only view of a list of shard files as one array per column.

    Args:
        paths: shard files of one schema, in manifest order. The first column begins at the same place in all of them;
            further ones do where the shards have equally many rows.
        rows: row count of each file.

    Raises:
        CorruptFileError: a file does not have the layout of the first.
    """

    def __init__(self, paths: Sequence[Path], rows: Sequence[int]) -> None:
        layouts = [_columns_of(path) for path in paths]
        self._columns = layouts[0]
        for path, layout in zip(paths, layouts, strict=True):
            if layout != self._columns:
                raise CorruptFileError(
                    str(path), f"its columns differ from, or begin elsewhere than, those of {paths[0]}"
                )
        slot_unit = math.lcm(mmap.PAGESIZE, *(column.row_bytes for column in self._columns))
        largest = max(path.stat().st_size for path in paths)
        self._slot_bytes = math.ceil(largest / slot_unit) * slot_unit
        self._size = self._slot_bytes * len(paths)
        self._base = _map(None, self._size, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, -1)
        for slot, path in enumerate(paths):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                address = self._base + slot * self._slot_bytes
                _map(address, path.stat().st_size, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, descriptor)
            finally:
                os.close(descriptor)
        self._views = {column.name: self._view(column) for column in self._columns}
        self._first_row = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)

    @property
    def rows(self) -> int:
        """Rows over all shards."""
        return int(self._first_row[-1])

    def buffers(self, batch_rows: int) -> dict[str, npt.NDArray[Any]]:
        """Empty arrays for `gather`, touched once so that no page fault is left for the hot path."""
        return {c.name: np.zeros((batch_rows, c.width), c.dtype) for c in self._columns}

    def gather(self, samples: npt.NDArray[np.int64], out: dict[str, npt.NDArray[Any]]) -> None:
        """Copy rows into ``out``: one gather per column.

        Args:
            samples: int64 ``[batch]``, row numbers over all shards in manifest order.
            out: per column an array ``[batch, width]`` from `buffers`.

        Raises:
            IndexError: a sample outside the dataset (the mapping itself would fault).
        """
        if samples.size and (samples.min() < 0 or samples.max() >= self.rows):
            raise IndexError(f"samples must lie in [0, {self.rows}), got {samples.min()}..{samples.max()}")
        shard = np.searchsorted(self._first_row, samples, side="right") - 1
        row_in_shard = samples - self._first_row[shard]
        for column in self._columns:
            rows_per_slot = self._slot_bytes // column.row_bytes
            index = shard * rows_per_slot + row_in_shard
            # mode="clip" writes straight into out; "raise" would go through a hidden copy.
            np.take(self._views[column.name], index, axis=0, out=out[column.name], mode="clip")

    def close(self) -> None:
        """Unmap. Arrays handed out by `buffers` stay valid; they are copies."""
        if self._views:
            self._views.clear()
            _libc.munmap(self._base, self._size)

    def _view(self, column: _Column) -> npt.NDArray[Any]:
        rows = (self._size - column.offset) // column.row_bytes
        memory = (ctypes.c_char * (rows * column.row_bytes)).from_address(self._base + column.offset)
        return np.ndarray((rows, column.width), column.dtype, buffer=memoryview(memory))


def _map(address: int | None, size: int, protection: int, flags: int, descriptor: int) -> int:
    mapped = _libc.mmap(address, size, protection, flags, descriptor, 0)
    if mapped is None or mapped == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap of shards failed")
    return int(mapped)


def _columns_of(path: Path) -> list[_Column]:
    """Layout of a shard: fixed-size lists of numbers, or plain numbers (width 1)."""
    try:
        with pa.memory_map(str(path)) as source:
            file = source.read_buffer(source.size())
            batch = ipc.open_file(pa.BufferReader(file)).get_batch(0)
    except pa.ArrowInvalid as error:
        raise CorruptFileError(str(path), f"not an Arrow file ({error})") from error
    columns = []
    for field in batch.schema:
        array, width = batch.column(field.name), 1
        if pa.types.is_fixed_size_list(field.type):
            array, width = array.values, field.type.list_size
        if not pa.types.is_primitive(array.type) or array.null_count:
            raise CorruptFileError(str(path), f"column {field.name} is {field.type}, not fixed-width without nulls")
        offset = array.buffers()[1].address - file.address
        columns.append(_Column(field.name, np.dtype(array.type.to_pandas_dtype()), width, offset))
    return columns
