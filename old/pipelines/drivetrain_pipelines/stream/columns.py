"""One column of many shards as one array, so that a batch is one gather, whichever shards its rows are in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from drivetrain_pipelines.errors import CorruptFileError
from drivetrain_pipelines.order.permutation import Int64Array
from drivetrain_pipelines.storage.arrow_types import dtype_of, flat_of, is_list, is_ragged, row_of
from drivetrain_pipelines.stream.address_range import HUGE_PAGE, PAGE, AddressRange

# Of Arrow's allocators jemalloc is the fastest to reuse the memory of the previous batch.
_POOL = pa.jemalloc_memory_pool() if "jemalloc" in pa.supported_memory_backends() else pa.default_memory_pool()
_MAX_ADDRESSES = 1 << 44  # of the 2**47 of a process
_MIN_TOUCH_BYTES = 1024  # bytes of a row; the cache misses of narrower rows overlap anyway


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths.

    Attributes:
        values: all rows one after another; one-dimensional.
        offsets: int64 ``[rows + 1]``; row ``i`` is ``values[offsets[i]:offsets[i + 1]]``.
    """

    values: npt.NDArray[Any]
    offsets: Int64Array

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, rows: slice) -> Ragged:
        return Ragged(self.values, self.offsets[rows.start : rows.stop + 1])

    def row(self, number: int) -> npt.NDArray[Any]:
        """Return one row, without a copy."""
        return self.values[self.offsets[number] : self.offsets[number + 1]]


Values = npt.NDArray[Any] | Ragged
Columns = dict[str, Values]
Allocate = Callable[[tuple[int, ...], npt.DTypeLike], npt.NDArray[Any]]


class Column(Protocol):
    """A column over all shards, some of which are mapped."""

    def map_shard(self, shard: int, file: ShardFile, array: pa.Array) -> None:
        """Make a shard's rows readable; ``array`` is the Arrow column over the file's bytes.

        Raises:
            CorruptFileError: the rows cannot be addressed.
        """

    def unmap_shard(self, shard: int) -> None:
        """Forget a shard; its rows must not be read any more."""

    def buffer(self, rows: int, allocate: Allocate) -> Values | None:
        """Allocate an array for `gather` to fill; None where batches differ in size."""

    def index(self, shards: Int64Array, rows: Int64Array) -> Int64Array:
        """Return the index that `gather` needs for some rows."""

    def gather(self, index: Int64Array, out: Values | None) -> Values:
        """Copy rows; returns ``out`` if given."""

    def close(self) -> None:
        """Unmap everything."""


@dataclass(frozen=True)
class ShardFile:
    """An open shard file."""

    path: str
    descriptor: int
    size: int
    address: int

    def offset(self, buffer: pa.Buffer) -> int:
        """Return the offset in the file of a buffer of one of its arrays."""
        return int(buffer.address) - self.address


class FixedColumn:
    """Rows of equal width. Slot ``s`` of the address range holds shard ``s``, placed so that all rows are on one grid.

    Args:
        kind: Arrow type: a number, a fixed-size list or a fixed-shape tensor of numbers.
        shards: number of shards.
        largest: bytes of the largest shard.
    """

    def __init__(self, kind: pa.DataType, shards: int, largest: int) -> None:
        self._dtype, self._shape = row_of(kind)
        self._width = math.prod(self._shape)
        self._row_bytes = self._dtype.itemsize * self._width
        # Slots consist of whole rows and whole pages, huge ones where the addresses suffice, and a grid
        # longer than the largest file, so that a file can be moved until its rows fit.
        grid = math.lcm(PAGE, self._row_bytes)
        huge = math.lcm(HUGE_PAGE, self._row_bytes)
        unit = huge if (largest + grid + huge) * shards < _MAX_ADDRESSES else grid
        self._slot = math.ceil((largest + grid) / unit) * unit
        self._range = AddressRange(self._slot * shards)
        self._first_row = np.zeros(shards, np.int64)
        self._anchor = -1  # where the grid begins: known with the first shard

    def map_shard(self, shard: int, file: ShardFile, array: pa.Array) -> None:
        """See `Column`."""
        numbers = flat_of(array)
        begin = file.offset(numbers.buffers()[1]) + numbers.offset * self._dtype.itemsize
        if self._anchor < 0:
            self._anchor = begin % self._row_bytes
            rows = (self._range.size - self._anchor) // self._row_bytes
            self._view = self._range.array(self._anchor, self._dtype, (rows, *self._shape))
            self._numbers = self._view.reshape(-1)
        shift = self._shift(begin - self._anchor)
        if array.null_count or shift is None:
            problem = "has nulls" if array.null_count else "begins off the grid of the other shards' rows"
            raise CorruptFileError(file.path, f"a column of {self._dtype}{list(self._shape)} {problem}")
        offset = shard * self._slot + shift
        self._range.map_file(offset, file.descriptor, file.size)
        self._first_row[shard] = (offset + begin - self._anchor) // self._row_bytes

    def unmap_shard(self, shard: int) -> None:
        """See `Column`."""
        self._range.clear(shard * self._slot, self._slot)

    def buffer(self, rows: int, allocate: Allocate) -> Values:
        """Allocate an array ``[rows, *row shape]``."""
        return allocate((rows, *self._shape), self._dtype)

    def index(self, shards: Int64Array, rows: Int64Array) -> Int64Array:
        """See `Column`."""
        return self._first_row[shards] + rows

    def gather(self, index: Int64Array, out: Values | None) -> Values:
        """See `Column`."""
        assert isinstance(out, np.ndarray)
        if self._row_bytes >= _MIN_TOUCH_BYTES:
            # Read one number of each row first: these misses of cache and page table overlap, those of copies do not.
            self._numbers.take(index * self._width, mode="clip")
        # mode="clip" writes directly into out; "raise" would use a hidden copy.
        self._view.take(index, axis=0, out=out, mode="clip")
        return out

    def close(self) -> None:
        """See `Column`."""
        self._range.close()

    def _shift(self, distance: int) -> int | None:
        """Return by how many bytes, whole pages, to move a file to make ``distance`` a multiple of the row width."""
        step = math.gcd(PAGE, self._row_bytes)
        if distance % step:
            return None
        modulus = self._row_bytes // step
        return -distance // step * pow(PAGE // step, -1, modulus) % modulus * PAGE


class RaggedColumn:
    """Rows of different lengths: bytes, text, or lists of numbers. Values are mapped, their offsets copied to a table.

    Args:
        kind: Arrow type.
        rows: rows of each shard.
        largest: bytes of the largest shard.
    """

    def __init__(self, kind: pa.DataType, rows: Sequence[int], largest: int) -> None:
        self._dtype = dtype_of(kind.value_type) if is_list(kind) else np.dtype(np.uint8)
        self._slot = math.ceil(largest / HUGE_PAGE) * HUGE_PAGE
        self._range = AddressRange(self._slot * len(rows))
        self._stride = max(rows) + 1  # one more, for the gap between the last value of a shard and the next shard
        self._offsets = np.zeros(self._stride * len(rows) + 1, np.int64)  # uses memory only for mapped shards
        # One Arrow array over the whole range: all of its rows exist, only those of mapped shards may be read.
        self._rows = pa.LargeBinaryArray.from_buffers(
            pa.large_binary(),
            self._stride * len(rows),
            [None, pa.py_buffer(self._offsets), pa.foreign_buffer(self._range.base, self._range.size)],
        )

    def map_shard(self, shard: int, file: ShardFile, array: pa.Array) -> None:
        """See `Column`."""
        if array.null_count:
            raise CorruptFileError(file.path, "a column has nulls")
        values = array.values if is_list(array.type) else array
        begin = file.offset(values.buffers()[-1])
        width = np.int32 if not str(array.type).startswith("large") else np.int64
        offsets = np.frombuffer(array.buffers()[1], width)[array.offset : array.offset + len(array) + 1]
        offset = shard * self._slot
        self._range.map_file(offset, file.descriptor, file.size)
        first = shard * self._stride
        self._offsets[first : first + len(array) + 1] = offsets.astype(np.int64) * self._dtype.itemsize + offset + begin

    def unmap_shard(self, shard: int) -> None:
        """See `Column`."""
        self._range.clear(shard * self._slot, self._slot)

    def buffer(self, rows: int, allocate: Allocate) -> None:
        """Return None: Arrow's memory pool reuses the memory of batches of any size."""

    def index(self, shards: Int64Array, rows: Int64Array) -> Int64Array:
        """See `Column`."""
        return shards * self._stride + rows

    def gather(self, index: Int64Array, out: Values | None) -> Values:
        """See `Column`."""
        assert out is None
        taken = pc.take(self._rows, pa.array(index), boundscheck=False, memory_pool=_POOL)  # checked by `index`
        _, offsets, values = taken.buffers()
        ends = np.frombuffer(offsets, np.int64, len(index) + 1) // self._dtype.itemsize
        return Ragged(np.frombuffer(values, self._dtype, ends[-1]), ends)

    def close(self) -> None:
        """See `Column`."""
        self._range.close()


def column_of(kind: pa.DataType, rows: Sequence[int], largest: int) -> Column:
    """Return the column for an Arrow type. Raises `TypeError` for types other than numbers or bytes."""
    if is_ragged(kind):
        return RaggedColumn(kind, rows, largest)
    return FixedColumn(kind, len(rows), largest)
