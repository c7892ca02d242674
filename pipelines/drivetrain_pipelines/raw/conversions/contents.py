"""What an image or a recording is known by: the digest of its file, whatever it is decoded to."""

from __future__ import annotations

import pyarrow as pa
import xxhash

from drivetrain_pipelines.raw.conversions.column import Column, Converted, UnfitError, python_values
from drivetrain_pipelines.raw.conversions.images import encoded


def contents(column: Column, converted: Converted) -> Converted:
    """Return a digest of each encoded file, large_binary; for arrays, of the converted value."""
    values = python_values(column.values) if isinstance(column.values, pa.Array) else column.values
    digests: list[bytes] = []
    for row, value in enumerate(values):
        try:
            content = b"" if row in converted.bad else encoded(value, column.name)
        except UnfitError:
            content = converted.values[row].tobytes()
        digests.append(xxhash.xxh3_128_digest(content))
    return Converted(pa.array(digests, pa.large_binary()))
