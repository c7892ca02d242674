"""Numbers and arrays of numbers: whole numbers and fractions of any width, bool as 0 and 1; never text by itself."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from drivetrain_pipelines.errors import PrepareError
from drivetrain_pipelines.raw.conversions.column import (
    Column,
    Converted,
    UnfitError,
    convert_each,
    is_empty,
    is_text,
    kind_of,
    plain,
    shown,
    why_empty,
)

Numbers = npt.NDArray[Any]

EXACT = 1 << 53  # whole numbers up to here are exact as float64
_ALLOWED = "numbers, or lists and arrays of numbers of one shape"
_INTEGER = re.compile(r"[+-]?[0-9]+")
_FRACTION = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_TRUTH = {"true": True, "false": False}


def numbers(column: Column, as_text: bool = False) -> Converted:
    """Return numbers ``[rows, ...]`` in the type that holds all of them, see `joined`.

    Args:
        as_text: texts are read as numbers: the file has no types, as CSV.

    Raises:
        PrepareError: the column has another type, rows of different shapes, or numbers that no type holds together.
    """
    if isinstance(column.values, pa.Array):
        return Converted(*_level(column, column.values, "it"))
    quick = _quick(column.values)
    return Converted(*_split(quick)) if quick is not None else _each(column, column.values, as_text)


def joined(dtypes: Iterable[np.dtype[Any]]) -> np.dtype[Any]:
    """Return the type that holds the numbers of all types: of all whole numbers first, then with those of fractions.

    Whole numbers of 64 bits must not pass `EXACT` to become float64.
    """
    kinds = set(dtypes)
    whole = {kind for kind in kinds if kind.kind in "iu"}
    if np.dtype(np.uint64) in whole and any(kind.kind == "i" for kind in whole):
        whole = {np.dtype(np.int64)}
    fractions = {kind for kind in kinds if kind.kind == "f"}
    parts = [reduce(np.promote_types, part) for part in (whole, fractions) if part]
    return np.dtype(reduce(np.promote_types, parts))


def number_of(value: Any, as_text: bool = False) -> Numbers:
    """Return a number, or an array of numbers; an array of any number of dimensions. Raises `UnfitError`."""
    if isinstance(value, str) and as_text:
        return _parsed(value)
    if is_empty(value):
        raise UnfitError(why_empty(value))
    if isinstance(value, (str, bytes, bytearray, memoryview)):
        raise UnfitError(f"{shown(value)} is {'text' if isinstance(value, str) else 'bytes'}, not a number")
    if isinstance(value, (bool, int, float, list, tuple)):
        return _of_python(value)
    if not hasattr(value, "__array__"):
        raise UnfitError(f"{shown(value)} is not a number ({kind_of(value)})")
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise UnfitError("it has masked elements")
    try:
        array = np.asarray(value)
    except Exception as error:  # a tensor on a device, or with a gradient: any error of its library
        raise UnfitError(f"{kind_of(value)} is no array of numbers: {error}") from None
    return _exact(array)


def _of_python(value: Any) -> Numbers:
    """Convert a number, or nested lists of numbers, that Python holds exactly."""
    try:
        array = np.array(value)
    except (ValueError, OverflowError, TypeError, RuntimeError):
        raise UnfitError("its lists have different lengths" if _is_numeric(value) else _strange(value)) from None
    if array.dtype.kind in "OUSMmVc" or (array.dtype.kind == "f" and _lossy(value, array)):
        raise UnfitError(_strange(value))
    if array.dtype == np.uint64 and any(type(element) is int and element >= 1 << 63 for element in _elements(value)):
        raise UnfitError(_strange(value))
    return _exact(array)


def _lossy(value: Any, array: Numbers) -> bool:
    """Check whether whole numbers among fractions changed: numpy makes one type of them."""
    with np.errstate(invalid="ignore", over="ignore"):
        if not (np.abs(array) >= EXACT).any():
            return False
    return any(isinstance(element, (int, np.integer)) and abs(int(element)) > EXACT for element in _elements(value))


def _strange(value: Any) -> str:
    """Return a sentence about the first element that is no number of 64 bits."""
    for element in _elements(value):
        if is_empty(element):
            return f"{shown(value)} has an element that is empty"
        if isinstance(element, (int, np.integer)) and not isinstance(element, np.timedelta64):  # NumPy's is an integer
            if not -(1 << 63) <= int(element) < 1 << 63:
                return f"{shown(element)} does not fit in 64 bits"
            continue
        if not isinstance(element, (bool, float, np.floating, np.bool_)):
            return f"{shown(element)} is not a number ({kind_of(element)})"
    return f"{shown(value)} has whole numbers beyond 2**53 among fractions; no type holds both exactly"


def _is_numeric(value: Any) -> bool:
    return all(isinstance(element, (bool, int, float, np.number, np.bool_)) for element in _elements(value))


def _elements(value: Any) -> Iterable[Any]:
    pending = [value]
    while pending:
        element = pending.pop()
        if isinstance(element, (list, tuple)):
            pending.extend(reversed(element))
        elif isinstance(element, np.ndarray):
            pending.extend(reversed(list(element)) if element.ndim else [element.item()])
        else:
            yield element


def _exact(array: Numbers) -> Numbers:
    """Check an array: finite numbers of a type that shards have."""
    if array.dtype == np.bool_:
        return array.astype(np.uint8)
    if array.dtype.kind not in "iuf" or array.dtype.itemsize > 8:
        raise UnfitError(f"it has the type {array.dtype}, which is no type of numbers of at most 64 bits")
    if 0 in array.shape:
        raise UnfitError(f"it has the shape {_shape(array.shape)}: no numbers")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        first = array[~np.isfinite(array)][0] if array.ndim else array
        raise UnfitError(f"{float(first)} is not a finite number")
    return array.astype(array.dtype.newbyteorder("="))


def _parsed(text: str) -> Numbers:
    """Parse a number that a file without types has; spaces around it do not count."""
    stripped = text.strip(" \t")
    if not stripped:
        raise UnfitError("it is empty")
    if _INTEGER.fullmatch(stripped):
        if len(stripped) > 20 or not -(1 << 63) <= int(stripped) < 1 << 63:
            raise UnfitError(f"{shown(stripped)} does not fit in 64 bits")
        return np.array(int(stripped), np.int64)
    if _FRACTION.fullmatch(stripped):
        return _exact(np.array(float(stripped)))
    if stripped.lower() in _TRUTH:
        return np.array(_TRUTH[stripped.lower()], np.uint8)
    hint = "; write fractions with a point" if "," in stripped else ""
    raise UnfitError(f"{shown(text)} is not a number{hint}")


def _quick(values: list[Any]) -> Numbers | None:
    """Convert numbers of Python at once; None if they must be looked at one by one."""
    kinds = set(map(type, values))
    if not kinds or not kinds <= {int, float, bool}:
        return None
    if float in kinds and any(type(value) is int and abs(value) > EXACT for value in values):
        return None
    try:
        return np.array(values, np.float64 if float in kinds else np.int64 if int in kinds else np.uint8)
    except OverflowError:
        return None


def _split(values: Numbers) -> tuple[Numbers, dict[int, str]]:
    """Return numbers, and the rows that are not finite."""
    if values.dtype.kind != "f" or not len(values):
        return values, {}
    wrong = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
    rows = np.flatnonzero(wrong).tolist()
    return values, {row: f"{values[row][~np.isfinite(values[row])].flat[0]} is not a finite number" for row in rows}


def _each(column: Column, values: list[Any], as_text: bool) -> Converted:
    """Convert values one by one and bring them to one shape and type."""
    found, bad = convert_each(values, lambda value: number_of(value, as_text))
    good = [row for row, array in enumerate(found) if array is not None]
    if not good:
        return Converted(np.zeros(len(values)), bad)
    shapes: dict[tuple[int, ...], int] = {}
    for row in good:
        shapes.setdefault(found[row].shape, row)
    if len(shapes) > 1:
        raise _ragged(column, [f"{_shape(shape)} in {column.place(row)}" for shape, row in list(shapes.items())[:2]])
    kinds = {found[row].dtype for row in good}
    kind = _joint_dtype(column, [np.stack([found[row] for row in good if found[row].dtype == one]) for one in kinds])
    made = np.zeros((len(values), *found[good[0]].shape), kind)
    for row in good:
        made[row] = found[row]
    return Converted(made, bad)


def _joint_dtype(column: Column, arrays: list[Numbers]) -> np.dtype[Any]:
    """Return the joint type of arrays. Raises `PrepareError` where it would change a whole number."""
    kind = joined(array.dtype for array in arrays)
    for array in arrays:
        wide = array.dtype.kind in "iu" and array.dtype.itemsize == 8
        limit = EXACT if kind.kind == "f" else np.iinfo(kind).max
        if wide and array.dtype != kind and ((array > limit).any() or (array < -limit).any()):
            raise column.refusal(
                "whole numbers beyond 2**53 among other numbers", "numbers that one type of 64 bits holds exactly"
            )
    return kind


def _ragged(column: Column, shapes: list[str]) -> PrepareError:
    return column.refusal(f"values of different shapes: {' and '.join(shapes)}", "values of one shape")


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]" if shape else "a plain number"


def _level(column: Column, array: pa.Array, what: str) -> tuple[Numbers, dict[int, str]]:
    """Return the numbers ``[rows, ...]`` of an array, level by level of its lists, and why some rows have none."""
    array = plain(array)
    if not array.null_count:
        return _level_without_nulls(column, array)
    bad = dict.fromkeys(np.flatnonzero(np.asarray(array.is_null())).tolist(), f"{what} is empty (null)")
    rows = np.flatnonzero(np.asarray(array.is_valid()))
    if not len(rows):
        return np.zeros(len(array)), bad
    found, wrong = _level_without_nulls(column, array.take(pa.array(rows)))
    values = np.zeros((len(array), *found.shape[1:]), found.dtype)
    values[rows] = found
    return values, bad | {int(rows[row]): problem for row, problem in wrong.items()}


def _level_without_nulls(column: Column, array: pa.Array) -> tuple[Numbers, dict[int, str]]:
    """Return the numbers ``[rows, ...]`` of an array without nulls, and the rows that have elements without one."""
    kind = array.type
    if isinstance(kind, pa.FixedShapeTensorType):
        if not array.storage.flatten().null_count:
            return _split(array.to_numpy_ndarray())
        array, kind = array.storage, array.storage.type
    if pa.types.is_boolean(kind):
        return np.asarray(array.cast(pa.uint8())), {}
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return _split(array.to_numpy(zero_copy_only=False))
    if not _is_list(kind):
        fix = "Convert it in data.transform"
        if is_text(kind):
            fix += ", for example with int or float"
        raise column.refusal(f"the type {getattr(column.values, 'type', kind)}", _ALLOWED, fix)
    lengths = np.asarray(pc.list_value_length(array))
    full = np.flatnonzero(lengths)
    bad = {int(row): "it is an empty list" for row in np.flatnonzero(lengths == 0)}
    if not len(full):
        return np.zeros(len(array)), bad
    found = np.unique(lengths[full])
    if len(found) > 1:
        raise column.refusal(f"lists of different lengths: {found[0]} and {found[1]}", "lists of one length")
    elements = (array.take(pa.array(full)) if bad else array).flatten()
    inner, wrong = _level(column, elements, "an element of it")
    values = np.zeros((len(array), int(found[0]), *inner.shape[1:]), inner.dtype)
    values[full] = inner.reshape(len(full), int(found[0]), *inner.shape[1:])
    for element, problem in sorted(wrong.items(), reverse=True):
        bad[int(full[element // int(found[0])])] = problem
    return values, bad


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    views = types.is_list_view(kind) or types.is_large_list_view(kind)
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind) or views)
