"""What a conversion takes and returns: a column of raw values; converted values and the rows that have none."""

from __future__ import annotations

import decimal
import reprlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from drivetrain_pipelines.errors import PrepareError

Values: TypeAlias = pa.Array | list[Any]


@dataclass(frozen=True)
class Missing:
    """Stands for the value of a record that lacks the field; ``names`` are the fields that it has."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Column:
    """One column of raw records.

    Attributes:
        name: its name in the job.
        values: with the type of the file (Arrow), or Python values of any type.
        file: where the records come from, for messages about the whole column.
        place: returns where the record of a row is, for messages about it.
    """

    name: str
    values: Values
    file: str
    place: Callable[[int], str] = str

    def __len__(self) -> int:
        return len(self.values)

    def refusal(self, given: str, allowed: str, fix: str = "Convert it in data.transform") -> PrepareError:
        """Return the error of a column that cannot be converted as a whole."""
        return PrepareError(f"{self.file}: column {self.name!r} has {given}; allowed: {allowed}", fix)


@dataclass(frozen=True)
class Converted:
    """The converted values of a column.

    Attributes:
        values: one for each row; without a meaning in the rows of ``bad``.
        bad: why a row has no value, by row.
    """

    values: pa.Array | npt.NDArray[Any]
    bad: dict[int, str] = field(default_factory=dict)


class UnfitError(ValueError):
    """A value that cannot be converted without loss; the message is a sentence about it."""


def convert_each(values: Values, function: Callable[[Any], Any]) -> tuple[list[Any], dict[int, str]]:
    """Apply ``function`` to each value. Returns the results, None where it raises `UnfitError`, and those messages."""
    results: list[Any] = []
    bad: dict[int, str] = {}
    for row, value in enumerate(python_values(values) if isinstance(values, pa.Array) else values):
        try:
            results.append(function(value))
        except UnfitError as error:
            results.append(None)
            bad[row] = str(error)
    return results, bad


def python_values(array: pa.Array) -> list[Any]:
    """Return the values of an Arrow array as Python objects; a text that is not UTF-8 stays bytes."""
    try:
        return array.to_pylist()  # type: ignore[no-any-return]  # pyarrow has no types
    except UnicodeDecodeError:
        return [value.as_buffer().to_pybytes() if value.is_valid else None for value in array]


def plain(array: pa.Array) -> pa.Array:
    """Return an array without the encodings that Arrow has for the same values: dictionaries, runs, views."""
    while True:
        kind = array.type
        if pa.types.is_dictionary(kind):
            array = array.dictionary_decode()
        elif pa.types.is_run_end_encoded(kind):
            array = pc.run_end_decode(array)
        elif isinstance(kind, pa.BaseExtensionType) and not isinstance(kind, pa.FixedShapeTensorType):
            array = array.storage
        elif pa.types.is_string_view(kind):
            array = array.cast(pa.large_string())
        elif pa.types.is_binary_view(kind):
            array = array.cast(pa.large_binary())
        else:
            return array


def is_text(kind: pa.DataType) -> bool:
    """Check whether an Arrow type is text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Check whether an Arrow type is bytes of any length."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def is_empty(value: Any) -> bool:
    """Check whether a value stands for no value: None, NaN, or a field that is missing."""
    if value is None or isinstance(value, Missing):
        return True
    if isinstance(value, decimal.Decimal):
        return value.is_nan()
    return isinstance(value, (float, np.floating)) and bool(np.isnan(value))


def why_empty(value: Any) -> str:
    """Return the sentence for a value of `is_empty`."""
    if isinstance(value, Missing):
        return f"it is missing; the record has {', '.join(value.names) or 'nothing'}"
    return "it is empty (null)" if value is None else "it is empty (NaN)"


def shown(value: Any) -> str:
    """Return a short representation of any value, for a message."""
    return reprlib.repr(value)


def kind_of(value: Any) -> str:
    """Return the name of a value's Python type, for a message."""
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
