"""Errors as one line on stderr, and exit codes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from drivetrain.errors import ClientOnlyError, DrivetrainError, InputError, NotFoundError

FAILED, WRONG_INPUT, TIMED_OUT, CANCELLED = 1, 2, 124, 130
_WRONG_INPUT = (InputError, NotFoundError, ClientOnlyError)
_SUGGESTION = "Did you mean"


@contextmanager
def errors() -> Iterator[None]:
    """Print an expected error as one line, and exit with its code."""
    try:
        yield
    except DrivetrainError as error:
        print(f"error: {message(error)}", file=sys.stderr)
        raise typer.Exit(WRONG_INPUT if isinstance(error, _WRONG_INPUT) else FAILED) from None
    except BrokenPipeError:  # the reader of the output has closed it, as `head` does
        raise
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(FAILED) from None


def message(error: DrivetrainError) -> str:
    """Return the text of an error; a suggestion stands before the list of what is allowed, which may be long."""
    if isinstance(error, InputError) and error.fix.startswith(_SUGGESTION):
        return f"{error.where}: got {error.given}. {error.fix} Allowed: {error.allowed}"
    return str(error)


def exit_as(reason: str) -> None:
    """Exit with the code of a run that has ended; return when it is complete."""
    if reason != "completed":
        raise typer.Exit(CANCELLED if reason == "cancelled" else FAILED)
