"""Errors as one line on stderr, and exit codes."""

from __future__ import annotations

import errno
import os
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
        print(f"error: {describe(error)}", file=sys.stderr)
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


def describe(error: OSError) -> str:
    """Return one line about an error of the operating system."""
    what = error.strerror or str(error) or type(error).__name__
    name = None if error.filename is None else os.fsdecode(error.filename)
    if error.errno == errno.ENOENT and not os.path.isabs(name or "") and not _current_folder_exists():
        return "the current folder was deleted; change to one that exists"
    return what if name is None else f"{what}: {name}"


def _current_folder_exists() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True
