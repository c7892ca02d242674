"""The first entries of a long list, and a note that there are more."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TypeVar

import typer

T = TypeVar("T")


def first(entries: Iterator[T], limit: int | None) -> Iterator[T]:
    """Yield the first ``limit`` entries, or all for None. Print a note on stderr when there are more."""
    yield from islice(entries, limit)
    if limit is not None and next(entries, None) is not None:
        typer.echo(f"only the newest {limit} are shown; --limit N shows more, --all shows all", err=True)
