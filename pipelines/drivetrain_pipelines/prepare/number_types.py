"""One type for the numbers of a column, from the types that its records have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from drivetrain_pipelines.errors import PrepareError
from drivetrain_pipelines.raw.conversions.numbers import EXACT, joined
from drivetrain_pipelines.storage.arrow_types import array_of, row_of


@dataclass(frozen=True)
class Observed:
    """The type of a column in one chunk.

    Attributes:
        range: smallest and largest value of 64-bit integers.
        url: a file with this type.
    """

    type: pa.DataType
    range: tuple[int, int] | None
    url: str


def promoted(name: str, observed: Iterable[Observed]) -> pa.DataType:
    """Return the smallest type that holds all numbers of a column exactly.

    Raises:
        PrepareError: there is none; names the column, its types and a file of each.
    """
    found = {(each.type, each.range): each for each in reversed(list(observed))}
    first_of = {each.type: each for each in reversed(list(found.values()))}
    shown = " and ".join(f"{each.type} in {each.url}" for each in first_of.values())
    rows = {kind: row_of(kind) for kind in first_of}
    if len({shape for _, shape in rows.values()}) > 1 or len({_is_row(kind) for kind in first_of}) > 1:
        raise PrepareError(f"the column {name!r} has rows of different shapes: {shown}", "Use data.transform")
    ranges = [each.range for each in found.values() if each.range]
    dtype = _common({dtype for dtype, _ in rows.values()}, ranges)
    if dtype is None:
        raise PrepareError(
            f"no type holds all numbers of the column {name!r} exactly: {shown}", "Convert them in data.transform"
        )
    kind = next(iter(first_of))
    shape = rows[kind][1] if _is_row(kind) else ()
    return array_of(np.zeros((1, *shape), dtype)).type


def _is_row(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.BaseExtensionType) or bool(pa.types.is_fixed_size_list(kind))


def _common(dtypes: set[np.dtype[Any]], ranges: list[tuple[int, int]]) -> np.dtype[Any] | None:
    """Return the joint type; None if it does not hold the integers, whose ranges are given, exactly."""
    joint = joined(dtypes)
    low, high = min((low for low, _ in ranges), default=0), max((high for _, high in ranges), default=0)
    if joint.kind == "f":
        return joint if low >= -EXACT and high <= EXACT else None
    return joint if joint == np.uint64 or high <= np.iinfo(np.int64).max else None
