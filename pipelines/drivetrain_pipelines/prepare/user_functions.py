"""Functions of the job that read or change records, called so that an error in them names them and the record."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from drivetrain_pipelines.errors import InputError, UserCodeError
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
        self._key, self._path = key, path
        self.name = f"{key} {path}"

    def __call__(self, argument: Any, place: str) -> Any:
        """Call the function. Raises `UserCodeError` for any exception; ``place`` says for which record or file."""
        try:
            return self._function(argument)
        except UserCodeError as error:
            raise _at(error, place) from error.__cause__

    def records(self, path: Path, url: str) -> Iterator[Row]:
        """Yield the records that a reader yields.

        Raises:
            UserCodeError: the reader raised an exception.
            InputError: it does not yield dictionaries.
        """
        found, allowed = self(path, url), "a function that yields dictionaries"
        if isinstance(found, (str, bytes, Mapping)) or not isinstance(found, Iterable):
            raise InputError(self._key, f"{self._path}, which returned {kind_of(found)} for {url}", allowed)
        iterator, count = iter(found), 0
        while True:
            count += 1
            try:
                record = next(iterator)
            except StopIteration:
                return
            except UserCodeError as error:
                raise _at(error, f"{url}, record {count}") from error.__cause__
            if not isinstance(record, Mapping):
                what = f"{shown(record)} ({kind_of(record)})"
                raise InputError(self._key, f"{self._path}, which yielded {what} as record {count} of {url}", allowed)
            yield dict(record)


def _at(error: UserCodeError, place: str) -> UserCodeError:
    return UserCodeError(error.key, f"{error.problem} for {place}", error.where)
