"""How errors are told on the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from drivetrain_pipelines.errors import DrivetrainError, InputError


@contextmanager
def errors() -> Iterator[None]:
    """One clear line for what a user can get wrong."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except DrivetrainError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
