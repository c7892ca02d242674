"""Texts, labels and group keys."""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from drivetrain_pipelines.raw.conversions.column import (
    Column,
    Converted,
    UnfitError,
    convert_each,
    is_bytes,
    is_empty,
    is_text,
    kind_of,
    plain,
    shown,
    why_empty,
)

_EXACT = 1 << 53  # from here on, whole numbers are the same float64
_KEYS = (datetime.date, datetime.time, datetime.timedelta, uuid.UUID)  # equal if their texts are


def texts(column: Column) -> Converted:
    """Return texts as they are, large_string; bytes are decoded.

    Raises:
        PrepareError: the column has a type that is not text.
    """
    if isinstance(column.values, pa.Array) and not _may_be_text(column.values):
        allowed = "text, or bytes in UTF-8"
        fix = "Return the text from data.transform, which gets the value, or set data.text_column to another column"
        raise column.refusal(f"the type {column.values.type}", allowed, fix)
    return _convert(column, text_of)


def labels(column: Column) -> Converted:
    """Return labels as text, large_string: names as they are, whole numbers in their shortest form, bool as 0 and 1.

    Raises:
        PrepareError: the column has a type that is neither text nor numbers.
    """
    if isinstance(column.values, pa.Array) and not _may_be_label(column.values):
        raise column.refusal(f"the type {column.values.type}", "labels: text or whole numbers")
    return _convert(column, label_of)


def group_keys(column: Column) -> Converted:
    """Return the keys of groups as text, large_string: equal keys are equal values.

    Raises:
        PrepareError: the column has a type whose values are not single values.
    """
    if isinstance(column.values, pa.Array) and pa.types.is_nested(plain(column.values).type):
        raise column.refusal(f"the type {column.values.type}", "group keys: text, numbers or dates")
    return _convert(column, group_key_of)


def text_of(value: Any) -> str:
    """Return a text. Raises `UnfitError`."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        try:
            return bytes(value).decode("utf-8")
        except UnicodeDecodeError as error:
            raise UnfitError(f"byte {error.start + 1} of it (0x{bytes(value)[error.start]:02x}) is not UTF-8") from None
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            code = ord(value[error.start])
            if 0xDC80 <= code <= 0xDCFF:  # how the readers keep a byte that is not UTF-8
                raise UnfitError(f"a byte of it (0x{code - 0xDC00:02x}) is not UTF-8") from None
            raise UnfitError(f"it has half a character (U+{code:04X})") from None
        return str(value)
    if is_empty(value):
        raise UnfitError(why_empty(value))
    raise UnfitError(f"{shown(value)} is not text ({kind_of(value)})")


def label_of(value: Any) -> str:
    """Return the canonical text of a label. Raises `UnfitError`."""
    value = _single(value)
    if isinstance(value, (str, bytes, bytearray, memoryview)):
        text = text_of(value)
        if not text.strip():
            raise UnfitError("it is empty")
        return text
    if isinstance(value, (bool, np.bool_, int, np.integer)):
        return str(int(value))
    if is_empty(value):
        raise UnfitError(why_empty(value))
    if isinstance(value, (float, np.floating, decimal.Decimal)):
        if not -_EXACT < value < _EXACT or int(value) != value:
            raise UnfitError(f"{shown(value)} is not a whole number, so it is no label")
        return str(int(value))
    raise UnfitError(f"{shown(value)} is neither text nor a whole number ({kind_of(value)})")


def group_key_of(value: Any) -> str:
    """Return the canonical text of a group key. Raises `UnfitError`."""
    value = _single(value)
    if isinstance(value, (float, np.floating)) and np.isfinite(value):
        return str(int(value)) if int(value) == value else repr(float(value))
    if isinstance(value, decimal.Decimal) and value.is_finite() and int(value) != value:
        return str(value.normalize(decimal.Context(prec=len(value.as_tuple().digits))))  # without rounding
    return str(value) if isinstance(value, _KEYS) else label_of(value)


def _single(value: Any) -> Any:
    """Return the value in an array or a tensor without dimensions; any other value unchanged."""
    if hasattr(value, "__array__") and getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item() if not isinstance(value, (np.floating, np.integer, np.bool_)) else value
    return value


def _convert(column: Column, function: Callable[[Any], str]) -> Converted:
    if isinstance(column.values, pa.Array) and (quick := _quick(plain(column.values), function)):
        return quick
    found, bad = convert_each(column.values, function)
    return Converted(pa.array(found, pa.large_string()), bad)


def _quick(array: pa.Array, function: Callable[[Any], str]) -> Converted | None:
    """Convert whole columns of text, or of whole numbers to labels; None if values must be looked at one by one."""
    kind = array.type
    if function is not text_of and pa.types.is_boolean(kind):
        array = array.cast(pa.uint8())
    elif is_text(kind):
        try:
            array.validate(full=True)  # files may have bytes in it that are not UTF-8
        except pa.ArrowInvalid:
            return None
        if function is not text_of and pc.any(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(array)), 0)).as_py():
            return None
    elif function is text_of or not pa.types.is_integer(kind):
        return None
    if array.null_count:
        return None
    return Converted(array.cast(pa.large_string()))


def _may_be_text(array: pa.Array) -> bool:
    kind = plain(array).type
    return is_text(kind) or is_bytes(kind) or bool(pa.types.is_fixed_size_binary(kind) or pa.types.is_null(kind))


def _may_be_label(array: pa.Array) -> bool:
    kind = plain(array).type
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return _may_be_text(array) or bool(numbers or pa.types.is_decimal(kind))
