"""What an Arrow type means for rows: numbers of one shape, or values of different lengths."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def is_list(kind: pa.DataType) -> bool:
    """Check whether rows are lists of any length."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def row_of(kind: pa.DataType) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Return element type and shape of one row; a plain number has shape ``[1]``.

    Raises:
        TypeError: rows of this type are not numbers.
    """
    if isinstance(kind, pa.FixedShapeTensorType):
        return dtype_of(kind.value_type), tuple(kind.shape)
    if pa.types.is_fixed_size_list(kind):
        return dtype_of(kind.value_type), (kind.list_size,)
    return dtype_of(kind), (1,)


def dtype_of(kind: pa.DataType) -> np.dtype[Any]:
    """Return the numpy type of a type of numbers. Arrow's own conversion would import pandas: 0.3 s of every restart.

    Raises:
        TypeError: not a type of numbers.
    """
    names = {pa.float16(): "float16", pa.float32(): "float32", pa.float64(): "float64"}
    if not pa.types.is_integer(kind) and kind not in names:
        raise TypeError(f"{kind} is neither numbers nor bytes")
    return np.dtype(names.get(kind, str(kind)))


def is_ragged(kind: pa.DataType) -> bool:
    """Check whether rows have different lengths: bytes, text, lists."""
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return text or is_list(kind) or bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def array_of(rows: npt.NDArray[Any]) -> pa.Array:
    """Convert numbers ``[rows, ...]`` to an Arrow array: plain numbers, fixed-size lists, or tensors."""
    if rows.ndim == 1:
        return pa.array(rows)
    if rows.ndim > 2:
        return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(rows))
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])


def flat_of(array: pa.Array) -> pa.Array:
    """Return all numbers of an array of `array_of`, one after another, regardless of a slice's offset."""
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    return array.values if pa.types.is_fixed_size_list(array.type) else array


def numbers_of(array: pa.Array) -> npt.NDArray[Any]:
    """Convert the result of `array_of`, a whole array, back without a copy."""
    dtype, shape = row_of(array.type)
    return np.frombuffer(flat_of(array).buffers()[1], dtype, len(array) * math.prod(shape)).reshape(-1, *shape)


def numbers_in(array: pa.Array) -> npt.NDArray[Any]:
    """Convert a result of `array_of`, or a slice of one, back: ``[rows]``, or ``[rows, ...]`` for lists and tensors."""
    tensor = isinstance(array.type, pa.BaseExtensionType)
    storage = array.storage if tensor else array
    if not pa.types.is_fixed_size_list(storage.type):
        return storage.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]  # pyarrow has no types
    shape = tuple(array.type.shape) if tensor else (storage.type.list_size,)
    return storage.flatten().to_numpy(zero_copy_only=False).reshape(-1, *shape)  # type: ignore[no-any-return]
