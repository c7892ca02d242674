"""Functions of the job that read or change records, called so that an error in them names them and the record."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from drivetrain_pipelines.errors import UserCodeError
from drivetrain_pipelines.raw.conversions.column import kind_of, shown
from drivetrain_pipelines.raw.records import Row
from drivetrain_pipelines.spec import DataSpec
from drivetrain_pipelines.user_code import load_function


class UserFunction:
    """A function that a key of the job names, with the files that it asks for.

    Args:
        key: ``data.reader`` or ``data.transform``.
        path: ``module:function``.
        code_folder: directory of the user's code.
    """

    def __init__(self, key: str, path: str, spec: DataSpec, code_folder: Path) -> None:
        function = load_function(path, str(code_folder), key)
        asked = inspect.signature(function).parameters if inspect.isfunction(function) else {}
        self._function: Callable[[Any], Any] = partial(
            function, **{name: Path(file) for name, file in spec.files.items() if name in asked}
        )
        self._folder = code_folder.resolve()
        self.name = f"{key} {path}"

    def __call__(self, argument: Any, place: str) -> Any:
        """Call the function. Raises `UserCodeError` for any exception; ``place`` says for which record or file."""
        try:
            return self._function(argument)
        except Exception as error:  # the user's code may raise anything
            raise self._error(error, place) from error

    def records(self, path: Path, url: str) -> Iterator[Row]:
        """Yield the records that a reader yields. Raises `UserCodeError`."""
        found = self(path, url)
        if isinstance(found, (str, bytes, Mapping)) or not isinstance(found, Iterable):
            raise UserCodeError(f"{self.name} returned {kind_of(found)} for {url}; it must yield dictionaries", "")
        iterator, count = iter(found), 0
        while True:
            count += 1
            try:
                record = next(iterator)
            except StopIteration:
                return
            except Exception as error:  # the user's code may raise anything
                raise self._error(error, f"{url}, record {count}") from error
            if not isinstance(record, Mapping):
                what = f"{shown(record)} ({kind_of(record)})"
                raise UserCodeError(f"{self.name} yielded {what} as record {count} of {url}; allowed: dictionaries", "")
            yield dict(record)

    def _error(self, error: Exception, place: str) -> UserCodeError:
        frames = traceback.extract_tb(error.__traceback__)[1:]
        own = [frame for frame in frames if Path(frame.filename).resolve().is_relative_to(self._folder)]
        at = (own or frames)[-1:]
        message = str(error).strip().splitlines()
        text = f"{type(error).__name__}: {message[0]}" if message else type(error).__name__
        return UserCodeError(f"{self.name} raised {text} for {place}", f"{at[0].filename}:{at[0].lineno}" if at else "")
