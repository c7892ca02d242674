"""Conversions of raw values: each gives exactly the value, or a sentence about it; never another value."""

from __future__ import annotations

import datetime
import decimal
import math
import re
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from drivetrain_pipelines.errors import PrepareError
from drivetrain_pipelines.raw.conversions.column import Column, Converted, Missing
from drivetrain_pipelines.raw.conversions.numbers import joined, numbers
from drivetrain_pipelines.raw.conversions.texts import group_keys, labels, texts
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as from_numpy

WIDE = st.one_of(st.integers(), st.sampled_from([2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1, 2**63, -(2**63), 2**64]))
ODD = st.one_of(
    st.none(),
    st.just(Missing(("a", "b"))),
    st.text(st.characters()),  # with half characters
    st.binary(max_size=6),
    st.decimals(),
    st.datetimes(),
    st.complex_numbers(),
    st.fractions(),
    st.uuids(),
    st.builds(object),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.sets(st.integers(), max_size=2),
)
NUMPY = st.one_of(
    from_numpy.arrays(
        st.one_of(from_numpy.scalar_dtypes(), from_numpy.unicode_string_dtypes()),
        from_numpy.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3),
    )
)
SCALARS = st.one_of(st.booleans(), WIDE, st.floats())
VALUES = st.recursive(st.one_of(SCALARS, ODD, NUMPY), lambda inner: st.lists(inner, max_size=3), max_leaves=6)
ROWS = st.one_of(
    st.lists(SCALARS, max_size=6),
    st.lists(st.one_of(SCALARS, ODD), max_size=6),
    st.lists(st.lists(SCALARS, min_size=2, max_size=2), max_size=4),
    st.lists(VALUES, max_size=4),
)

ARROW_TYPES: list[Any] = [
    *(pa.int8(), pa.uint8(), pa.int32(), pa.int64(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.bool_()),
    *(pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(2)),
    *(pa.null(), pa.date32(), pa.timestamp("us"), pa.duration("s"), pa.decimal128(10, 2), pa.time64("us")),
    *(pa.list_(pa.int64()), pa.large_list(pa.float32()), pa.list_(pa.int16(), 2), pa.list_view(pa.uint8())),
    *(pa.list_(pa.list_(pa.float64(), 2)), pa.list_(pa.string()), pa.struct({"a": pa.int64()})),
    *(pa.map_(pa.string(), pa.int64()), pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.int64())),
    pa.run_end_encoded(pa.int32(), pa.float64()),
]


@st.composite
def arrow_arrays(draw: Callable[..., Any]) -> pa.Array:
    """Draw an array of any type, with nulls; sometimes a slice of a larger one."""
    kind = draw(st.sampled_from(ARROW_TYPES))
    values = draw(st.lists(st.one_of(st.none(), _of(kind)), max_size=6))
    array = pa.array(values, kind)
    return array[draw(st.integers(0, len(array))) :] if draw(st.booleans()) else array


def _of(kind: pa.DataType) -> st.SearchStrategy[Any]:
    types = pa.types
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return _of(kind.value_type)
    nested = types.is_list(kind) or types.is_large_list(kind) or types.is_list_view(kind)
    if nested or types.is_fixed_size_list(kind):
        inner = _of(kind.value_type)
        pairs = st.lists(st.one_of(st.none(), inner), min_size=2, max_size=2)
        return st.one_of(pairs, st.lists(inner, max_size=3)) if nested else pairs
    if types.is_integer(kind):
        low = 0 if types.is_unsigned_integer(kind) else -(2 ** (kind.bit_width - 1))
        return st.integers(low, low + 2**kind.bit_width - 1)
    return st.floats(width=kind.bit_width) if types.is_floating(kind) else _SIMPLE.get(kind, st.text(max_size=4))


_BYTES = st.one_of(st.binary(max_size=4), st.text(max_size=4).map(str.encode))
_SIMPLE: dict[Any, st.SearchStrategy[Any]] = {
    pa.null(): st.none(),
    pa.bool_(): st.booleans(),
    pa.date32(): st.dates(),
    pa.timestamp("us"): st.datetimes(),
    pa.duration("s"): st.integers(-(10**9), 10**9).map(lambda seconds: datetime.timedelta(seconds=seconds)),
    pa.time64("us"): st.times(),
    pa.decimal128(10, 2): st.decimals(-9999, 9999, places=2),
    pa.binary(): _BYTES,
    pa.large_binary(): _BYTES,
    pa.binary_view(): _BYTES,
    pa.binary(2): st.binary(min_size=2, max_size=2),
    pa.struct({"a": pa.int64()}): st.just({"a": 1}),
    pa.map_(pa.string(), pa.int64()): st.just([("k", 1)]),
}


def converted(function: Callable[..., Converted], values: Any, **options: Any) -> Converted | None:
    """Convert a column; None if it is refused as a whole, with a sentence."""
    try:
        made = function(Column("x", values, "data.file"), **options)
    except PrepareError as error:
        refusal = str(error)
        assert re.match(r"data.file: column 'x' has .*; allowed: ", refusal)
        return None
    assert all(0 <= row < len(values) and isinstance(text, str) and text for row, text in made.bad.items())
    assert len(made.values) == len(values)
    return made


def plain(value: Any) -> Any:
    """Return a value as numbers of Python, which compare without rounding."""
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(element) for element in value]
    return value.item() if isinstance(value, np.generic) else value


def is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) and abs(value) < 2**63 and math.isfinite(value)


@given(values=ROWS)
def test_numbers_are_exact_or_bad(values: list[Any]) -> None:
    made = converted(numbers, values)
    if made is None:
        assert not all(is_number(value) and abs(value) <= 2**53 for value in values)
        return
    assert made.values.dtype.kind in "iuf"
    for row, value in enumerate(values):
        if row not in made.bad:
            assert plain(made.values[row]) == plain(value)
        assert row not in made.bad or not is_number(value)


@given(array=arrow_arrays())
def test_numbers_of_arrow_are_exact_or_bad(array: pa.Array) -> None:
    made = converted(numbers, array)
    values = array.to_pylist()
    if made is None:
        assert not values or not all(is_number(value) for value in values)
        return
    for row, value in enumerate(values):
        if row not in made.bad:
            assert plain(made.values[row]) == plain(value)
        assert row not in made.bad or not is_number(value)


@given(
    values=st.lists(
        st.one_of(WIDE.map(str), st.floats().map(str), st.text(max_size=4), st.sampled_from([" 5 ", "1,5"]))
    )
)
def test_numbers_in_text_are_those_of_python_or_bad(values: list[str]) -> None:
    made = converted(numbers, values, as_text=True)
    if made is None:
        assert any(value.lstrip("+-").isdigit() and abs(int(value)) > 2**53 for value in values)
        return
    for row, text in enumerate(values):
        if row not in made.bad:
            number = {"true": 1, "false": 0}.get(text.strip().lower())
            if number is None:
                number = int(text) if text.strip().lstrip("+-").isdigit() else float(text)
            assert made.values[row] == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1e3", 1000),
        (" 5 ", 5),
        ("+7", 7),
        (".5", 0.5),
        ("5.", 5),
        ("-0.25", -0.25),
        ("007", 7),
        ("True", 1),
        ("false", 0),
    ],
)
def test_numbers_in_text(text: str, number: float) -> None:
    made = numbers(Column("x", [text], "f"), as_text=True)
    assert (made.values[0], made.bad) == (number, {})


@pytest.mark.parametrize(
    "text",
    ["", " ", "1,5", "1.000,5", "1_000", "0x10", "nan", "inf", "1e999", "٣", "NA", "null", "1 2", "9" * 19, "--1"],
)
def test_text_that_is_no_number(text: str) -> None:
    assert list(numbers(Column("x", [text], "f"), as_text=True).bad) == [0]
    assert list(numbers(Column("x", [text], "f")).bad) == [0]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([True, False], "uint8"),
        ([True, 3], "int64"),
        ([1, 2.5], "float64"),
        ([np.float32(1), np.float32(2)], "float32"),
        ([np.int8(1), np.uint8(2)], "int16"),
        ([np.array([1, 2], ">i4")], "int32"),
        (pa.array([1, 2], pa.uint64()), "uint64"),
        (pa.array([1.5], pa.float16()), "float16"),
        (pa.array([True, False]), "uint8"),
        (pa.array([[1, 2]], pa.list_(pa.int16())), "int16"),
    ],
)
def test_types_stay_as_they_are(values: Any, kind: str) -> None:
    assert numbers(Column("x", values, "f")).values.dtype == kind


@given(kinds=st.sets(st.sampled_from(["uint8", "int8", "int16", "uint16", "int64", "float16", "float32", "float64"])))
def test_a_joint_type_holds_every_type(kinds: set[str]) -> None:
    if kinds:
        joint = joined(map(np.dtype, kinds))
        assert all(np.can_cast(kind, joint) for kind in kinds)


def test_refusals_name_lengths_and_types() -> None:
    with pytest.raises(PrepareError, match=r"lists of different lengths: 1 and 2"):
        numbers(Column("x", pa.array([[1], [1, 2]]), "f"))
    with pytest.raises(PrepareError, match=r"different shapes: \[1\] in line 1 and \[2\] in line 2"):
        numbers(Column("x", [[1], [1, 2]], "f", lambda row: f"line {row + 1}"))
    with pytest.raises(PrepareError, match=r"f: column 'x' has the type decimal128\(10, 2\); allowed: numbers"):
        numbers(Column("x", pa.array([decimal.Decimal(1)], pa.decimal128(10, 2)), "f"))
    with pytest.raises(PrepareError, match=r"whole numbers beyond 2\*\*53"):
        numbers(Column("x", [2**60, 0.5], "f"))


def test_tensors_are_numbers() -> None:
    import torch

    made = numbers(
        Column("x", [torch.tensor([1.5, 2]), torch.ones(2, requires_grad=True), torch.tensor([1.5, 3])], "f")
    )
    assert made.values[[0, 2]].tolist() == [[1.5, 2], [1.5, 3]]
    assert "grad" in made.bad[1]


@given(values=st.lists(st.one_of(VALUES, st.text())))
def test_texts_are_exact_or_bad(values: list[Any]) -> None:
    made = converted(texts, values)
    assert made
    _check_texts(values, made)


@given(array=arrow_arrays())
def test_texts_of_arrow_are_exact_or_bad(array: pa.Array) -> None:
    made = converted(texts, array)
    if made is None:
        assert not any(isinstance(value, (str, bytes)) for value in array.to_pylist())
        return
    _check_texts(array.to_pylist(), made)


def _check_texts(values: list[Any], made: Converted) -> None:
    for row, (value, text) in enumerate(zip(values, made.values.to_pylist(), strict=True)):
        try:
            expected = value if isinstance(value, bytes) else value.encode()
            expected.decode()
        except (UnicodeError, AttributeError):
            assert row in made.bad
        else:
            assert row not in made.bad
            assert text.encode() == expected


def test_a_text_column_of_parquet_may_hold_bytes_that_are_no_text() -> None:
    array = pa.array([b"good", b"\xff", None], pa.binary()).view(pa.string())
    made = texts(Column("x", array, "f"))
    assert made.values[0].as_py() == "good"
    assert made.bad == {1: "byte 1 of it (0xff) is not UTF-8", 2: "it is empty (null)"}


@given(values=st.lists(VALUES))
def test_labels_and_group_keys_are_exact_or_bad(values: list[Any]) -> None:
    for function in (labels, group_keys):
        made = converted(function, values)
        assert made
        for row, (value, text) in enumerate(zip(values, made.values.to_pylist(), strict=True)):
            if row not in made.bad:
                _check_label(plain(value) if isinstance(value, (np.generic, np.ndarray)) else value, text, function)
            else:
                assert type(value) is not int


def _check_label(value: Any, text: str, function: Any) -> None:
    if isinstance(value, (str, bytes)):
        assert text.encode() == (value if isinstance(value, bytes) else value.encode())
    elif isinstance(value, (bool, int)) or (isinstance(value, (float, decimal.Decimal)) and value == int(value)):
        assert decimal.Decimal(text) == value
        assert function is group_keys or text.lstrip("-").isdigit()
    elif isinstance(value, (float, decimal.Decimal)):
        assert function is group_keys
        assert type(value)(text) == value
    elif isinstance(value, datetime.timedelta):
        assert text == str(value)
    else:
        assert function is group_keys
        assert isinstance(value, (datetime.date, datetime.time, uuid.UUID))
        assert text == str(value)


@given(array=arrow_arrays())
def test_labels_of_arrow_are_those_of_python(array: pa.Array) -> None:
    """A column is converted at once where that gives what its values give one by one."""
    for function in (labels, group_keys):
        made = converted(function, array)
        if made is not None:
            alone = function(Column("x", array.to_pylist(), "f"))
            assert made.bad == alone.bad
            assert all(
                row in made.bad or made.values[row].as_py() == alone.values[row].as_py() for row in range(len(array))
            )


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (3, "3"),
        (3.0, "3"),
        (True, "1"),
        ("007", "007"),
        (" a ", " a "),
        (b"cat", "cat"),
        (np.int8(4), "4"),
        (np.array(2), "2"),
    ],
)
def test_labels(value: Any, label: str) -> None:
    assert labels(Column("x", [value], "f")).values.to_pylist() == [label]


@pytest.mark.parametrize("value", ["", " ", None, float("nan"), 1.5, 1e300, float("inf"), [1], {}, b"\xff", object()])
def test_no_labels(value: Any) -> None:
    assert list(labels(Column("x", [value], "f")).bad) == [0]
