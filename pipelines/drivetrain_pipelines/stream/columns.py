"""One column of many shards as one array, so that a batch is one gather wherever its rows lie."""

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

# Of Arrow's allocators jemalloc is the quickest to hand the memory of the batch before out again.
_POOL = pa.jemalloc_memory_pool() if "jemalloc" in pa.supported_memory_backends() else pa.default_memory_pool()
_MOST_ADDRESSES = 1 << 44  # of the 2**47 that a process has
_WORTH_TOUCHING = 1024  # bytes of a row; the misses of narrower ones overlap by themselves


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
        """One row, without a copy."""
        return self.values[self.offsets[number] : self.offsets[number + 1]]


Values = npt.NDArray[Any] | Ragged
Columns = dict[str, Values]
Allocate = Callable[[tuple[int, ...], npt.DTypeLike], npt.NDArray[Any]]


class Column(Protocol):
    """A column over all shards, of which some are mapped."""

    def map_shard(self, shard: int, file: ShardFile, array: pa.Array) -> None:
        """Make a shard's rows readable; ``array`` is the column as Arrow sees it in the file's bytes.

        Raises:
            CorruptFileError: the rows cannot be addressed.
        """

    def unmap_shard(self, shard: int) -> None:
        """Forget a shard; its rows must not be asked for any more."""

    def buffer(self, rows: int, allocate: Allocate) -> Values | None:
        """An array for `gather` to fill; None where every batch has another size."""

    def index(self, shards: Int64Array, rows: Int64Array) -> Int64Array:
        """What `gather` wants to know of some rows."""

    def gather(self, index: Int64Array, out: Values | None) -> Values:
        """Copy rows; returns ``out`` where there is one."""

    def close(self) -> None:
        """Unmap everything."""


@dataclass(frozen=True)
class ShardFile:
    """A shard file that is open."""

    path: str
    descriptor: int
    size: int
    address: int

    def offset(self, buffer: pa.Buffer) -> int:
        """Where in the file a buffer of one of its arrays lies."""
        return int(buffer.address) - self.address


class FixedColumn:
    """Rows of equal width. Slot ``s`` of the address range holds shard ``s``, placed so that all rows lie on one grid.

    Args:
        kind: Arrow type: a number, a fixed-size list or a fixed-shape tensor of numbers.
        shards: how many there are.
        largest: bytes of the largest.
    """

    def __init__(self, kind: pa.DataType, shards: int, largest: int) -> None:
        self._dtype, self._shape = row_of(kind)
        self._width = math.prod(self._shape)
        self._row_bytes = self._dtype.itemsize * self._width
        # Slots are whole rows and whole pages, huge ones where the addresses suffice, and a grid longer than the
        # largest file, so that it can be moved to where its rows fit.
        grid = math.lcm(PAGE, self._row_bytes)
        huge = math.lcm(HUGE_PAGE, self._row_bytes)
        unit = huge if (largest + grid + huge) * shards < _MOST_ADDRESSES else grid
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
            problem = (
                "has nulls" if array.null_count else "begins where the grid of the other shards' rows cannot reach"
            )
            raise CorruptFileError(file.path, f"a column of {self._dtype}{list(self._shape)} {problem}")
        place = shard * self._slot + shift
        self._range.map_file(place, file.descriptor, file.size)
        self._first_row[shard] = (place + begin - self._anchor) // self._row_bytes

    def unmap_shard(self, shard: int) -> None:
        """See `Column`."""
        self._range.clear(shard * self._slot, self._slot)

    def buffer(self, rows: int, allocate: Allocate) -> Values:
        """An array ``[rows, *row shape]``."""
        return allocate((rows, *self._shape), self._dtype)

    def index(self, shards: Int64Array, rows: Int64Array) -> Int64Array:
        """See `Column`."""
        return self._first_row[shards] + rows

    def gather(self, index: Int64Array, out: Values | None) -> Values:
        """See `Column`."""
        assert isinstance(out, np.ndarray)
        if self._row_bytes >= _WORTH_TOUCHING:
            # One number of each row first: these misses of cache and page table overlap, those of copies do not.
            self._numbers.take(index * self._width, mode="clip")
        # mode="clip" writes straight into out; "raise" would go through a hidden copy.
        self._view.take(index, axis=0, out=out, mode="clip")
        return out

    def close(self) -> None:
        """See `Column`."""
        self._range.close()

    def _shift(self, distance: int) -> int | None:
        """Bytes, whole pages, by which to move a file so that ``distance`` becomes a multiple of the row width."""
        step = math.gcd(PAGE, self._row_bytes)
        if distance % step:
            return None
        modulus = self._row_bytes // step
        return -distance // step * pow(PAGE // step, -1, modulus) % modulus * PAGE


class RaggedColumn:
    """Rows of different lengths: bytes, text, or lists of numbers. Values are mapped, their offsets copied to a table.

    Args:
        kind: Arrow type.
        rows: of each shard.
        largest: bytes of the largest shard.
    """

    def __init__(self, kind: pa.DataType, rows: Sequence[int], largest: int) -> None:
        self._dtype = dtype_of(kind.value_type) if is_list(kind) else np.dtype(np.uint8)
        self._slot = math.ceil(largest / HUGE_PAGE) * HUGE_PAGE
        self._range = AddressRange(self._slot * len(rows))
        self._stride = max(rows) + 1  # one more, for the gap between the last value of a shard and the next shard
        self._offsets = np.zeros(self._stride * len(rows) + 1, np.int64)  # memory comes with the shards that are mapped
        # One Arrow array over the whole range: all of its rows exist, those of mapped shards may be read.
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
        place = shard * self._slot
        self._range.map_file(place, file.descriptor, file.size)
        first = shard * self._stride
        self._offsets[first : first + len(array) + 1] = offsets.astype(np.int64) * self._dtype.itemsize + place + begin

    def unmap_shard(self, shard: int) -> None:
        """See `Column`."""
        self._range.clear(shard * self._slot, self._slot)

    def buffer(self, rows: int, allocate: Allocate) -> None:
        """Nothing: Arrow's memory pool keeps and reuses what batches of any size need."""

    def index(self, shards: Int64Array, rows: Int64Array) -> Int64Array:
        """See `Column`."""
        return shards * self._stride + rows

    def gather(self, index: Int64Array, out: Values | None) -> Values:
        """See `Column`."""
        assert out is None
        taken = pc.take(self._rows, pa.array(index), boundscheck=False, memory_pool=_POOL)  # `index` has checked
        _, offsets, values = taken.buffers()
        ends = np.frombuffer(offsets, np.int64, len(index) + 1) // self._dtype.itemsize
        return Ragged(np.frombuffer(values, self._dtype, ends[-1]), ends)

    def close(self) -> None:
        """See `Column`."""
        self._range.close()


def column_of(kind: pa.DataType, rows: Sequence[int], largest: int) -> Column:
    """The column for an Arrow type. Raises `TypeError` for one that holds no numbers or bytes."""
    if is_ragged(kind):
        return RaggedColumn(kind, rows, largest)
    return FixedColumn(kind, len(rows), largest)
