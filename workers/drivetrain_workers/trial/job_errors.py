"""Errors of the user's code and data as errors of the job: which key, which line, what to do."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from drivetrain_pipelines.errors import DrivetrainError, InputError, PrepareError, UserCodeError

_MAX_TEXT = 300


@contextmanager
def errors_of(key: str, given: str, allowed: str, code: Path, left_out: Mapping[str, str]) -> Iterator[None]:
    """Turn every error of a block into an `InputError` of a key.

    Args:
        given: what the key names, such as ``a function``.
        code: folder of the user's code; the last line of it that was running is part of the message.
        left_out: files and folders that are not part of the code, each with the reason.

    Raises:
        InputError: the block failed.
    """
    try:
        yield
    except InputError:
        raise
    except PrepareError as error:
        raise InputError(key, error.problem, allowed, error.fix) from error
    except (Exception, SystemExit) as error:  # any error of the user's code, and of storage
        if found := _of_function(error, code, left_out):
            if found.where == key:
                found = InputError(key, found.given, allowed, found.fix)
            raise found from error
        cause = error.__cause__ if isinstance(error, DrivetrainError) and error.__cause__ else error
        lines = str(cause).strip().splitlines()
        what = f"{type(cause).__name__}: {lines[0][:_MAX_TEXT]}" if lines else type(cause).__name__
        raise InputError(
            key, f"{given} that failed{_line(cause, code)}: {what}", allowed, _fix(cause, code, left_out)
        ) from error


def _of_function(error: BaseException, code: Path, left_out: Mapping[str, str]) -> InputError | None:
    """Return the error of a function that a key of the job names."""
    found = error if isinstance(error, UserCodeError) else error.__cause__
    if not isinstance(found, UserCodeError):
        return None
    at = f" at {found.where.partition(',')[0]}" if found.where else ""
    fix = _fix(found.__cause__, code, left_out) if found.__cause__ else ""
    return InputError(found.key, f"a function that failed{at}: {found.problem}", "a function without errors", fix)


def _line(error: BaseException, code: Path) -> str:
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(code):
            return f" at {path.relative_to(code)}:{frame.lineno}"
    return ""


def _fix(error: BaseException, code: Path, left_out: Mapping[str, str]) -> str:
    """Return what to do about missing credentials, and about a file that is missing because it is not code."""
    if "Credentials" in type(error).__name__:
        return (
            "Name a profile in data.storage.profile, or set data.storage.anonymous, AWS_PROFILE or AWS_ACCESS_KEY_ID."
        )
    if not isinstance(error, FileNotFoundError) or not isinstance(error.filename, str):
        return ""
    path = code / error.filename
    if not path.is_relative_to(code):
        return ""
    name = path.relative_to(code)
    for each in (name, *name.parents):
        if why := left_out.get(each.as_posix()):
            return f"The code of a run leaves out {each}: it is {why}. Name it in model.files or data.files."
    return "The code of a run is the folder of the job file."
