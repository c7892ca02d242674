"""Lists that may be long: the first entries, and a line that says so where there are more."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TypeVar

import typer

T = TypeVar("T")


def first(entries: Iterator[T], limit: int | None) -> Iterator[T]:
    """Yield the first ``limit`` entries, all of them where it is None; say on stderr that there are more."""
    yield from islice(entries, limit)
    if limit is not None and next(entries, None) is not None:
        typer.echo(f"the newest {limit} are shown; --limit N shows more, --all shows every one", err=True)
