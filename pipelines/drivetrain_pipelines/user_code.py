"""Loading of functions that a job file names as ``package.module:function``, and the exceptions that they raise.

A failure belongs to whose code raised it. Therefore every exception that leaves a function of the job becomes a
`UserCodeError`, whatever its type: an OSError of a loss is no fault of our storage, and a SystemExit is no success.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from drivetrain_pipelines.errors import DrivetrainError, InputError, UserCodeError

_PACKAGES = ("drivetrain_pipelines", "drivetrain_workers", "drivetrain")
_MAX_SHOWN = 500  # characters of an exception

SOURCE_FOLDER = "src"
_WITH_EFFECTS = {"this", "antigravity"}  # modules that print or open something when they are imported


def _current_folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return ""


_started_in = _current_folder()
_entered: list[str] = []  # import roots of the job whose code this process runs


def training_is_installed() -> bool:
    """Check whether the packages of ``drivetrain[train]`` are installed, not only the client."""
    return importlib.util.find_spec("torch") is not None


def import_roots(folder: Path) -> list[Path]:
    """Return the folders of a job's code in which modules are searched: its own, then ``src`` if that is no package."""
    source = folder / SOURCE_FOLDER
    return [folder, source] if source.is_dir() and not (source / "__init__.py").exists() else [folder]


def work_in(folder: Path) -> None:
    """Make this process run the code of a job: in its folder, which is first on the import path.

    Another job's folder leaves the import path, and the modules from it are forgotten. Names of Python's standard
    library belong to Python, whatever the folder holds.
    """
    roots = [str(root) for root in import_roots(folder)]
    if _entered != roots:
        _leave()
        _entered[:] = roots
        inside = {path.stem for root in roots for path in Path(root).glob("*.py")}
        inside |= {path.parent.name for root in roots for path in Path(root).glob("*/__init__.py")}
        for name in sorted(inside & (sys.stdlib_module_names - _WITH_EFFECTS)):
            with suppress(ImportError), warnings.catch_warnings(action="ignore"):  # of another platform; deprecated
                importlib.import_module(name)
    elsewhere = {"", _started_in} - set(os.environ.get("PYTHONPATH", "").split(os.pathsep))  # not on other machines
    sys.path[:] = [*roots, *(entry for entry in sys.path if entry not in elsewhere.union(roots))]
    importlib.invalidate_caches()  # the code may have been written since Python last read the folder
    with suppress(FileNotFoundError):  # a folder that does not exist holds no module either
        os.chdir(folder)


def _leave() -> None:
    """Remove the import path and the modules of the job that this process ran before."""
    sys.path[:] = [entry for entry in sys.path if entry not in _entered]
    for name, module in list(sys.modules.items()):
        if _is_inside(module, _entered):
            del sys.modules[name]


def _is_inside(module: ModuleType, roots: list[str]) -> bool:
    names = getattr(module, "__dict__", {})  # attributes of a lazy module would load something
    found = [names.get("__file__"), *(names.get("__path__") or ())]
    paths = [Path(path) for path in found if path and "site-packages" not in path]  # an environment in the folder
    return any(path.is_relative_to(root) for path in paths for root in roots)


def files_of(folder: Path) -> list[Path]:
    """Return the files of a copy of a job's code: those in the list next to it. A run may write others into it.

    Of a folder without a list, the Python modules.
    """
    listed = folder.with_name(f"{folder.name}.json")
    if listed.is_file():
        return [folder / name for name in json.loads(listed.read_text())["files"]]
    return sorted(folder.rglob("*.py"))


def load_function(path: str, folder: str, key: str) -> Callable[..., Any]:
    """Import ``path`` in a process that runs the job's code; see `work_in`.

    Args:
        path: ``package.module:function``.
        folder: directory of the user's code.
        key: the job file's key that holds ``path``, for the error message.

    Raises:
        InputError: the module or the function does not exist, or another module has the name.
        UserCodeError: the module raised an exception.
    """
    module_name, _, function_name = path.partition(":")
    work_in(Path(folder))
    top = module_name.partition(".")[0]
    try:
        with attributed(key, folder):
            module = importlib.import_module(module_name)
    except UserCodeError as error:
        cause = error.__cause__
        at = f" ({error.where})" if error.where else ""
        if isinstance(cause, ModuleNotFoundError):
            raise InputError(key, repr(path), f"a module importable from {folder}", f"{cause}{at}") from cause
        if isinstance(cause, SyntaxError):
            raise InputError(key, repr(path), "valid Python code", f"{cause.msg}{at}") from cause
        raise
    if _provides(_entered, top) and not _is_inside(sys.modules[top], _entered):
        allowed = (
            f"a module whose name no other has; {top} is {sys.modules[top].__name__} of {_origin(sys.modules[top])}"
        )
        raise InputError(key, repr(path), allowed, f"Rename {top} in {folder}.")
    function = getattr(module, function_name, None)
    if not callable(function):
        names = ", ".join(name for name in dir(module) if not name.startswith("_")) or "nothing"
        raise InputError(key, repr(path), f"a function of {module.__file__}", f"It defines {names}.")
    return guarded(function, key, folder)


def _provides(roots: list[str], top: str) -> bool:
    return any((Path(root) / top / "__init__.py").is_file() or (Path(root) / f"{top}.py").is_file() for root in roots)


def _origin(module: ModuleType) -> str:
    return str(getattr(module, "__file__", None) or "Python itself")


def guarded(function: Callable[..., Any], key: str, folder: str) -> Callable[..., Any]:
    """Return ``function`` with its exceptions as `UserCodeError`; also those of an iterator that it returns.

    Exceptions that keep their type: MemoryError, and a `DrivetrainError` of Drivetrain's code that the function called.
    """

    @functools.wraps(function, updated=())
    def call(*arguments: Any, **named: Any) -> Any:
        with attributed(key, folder, function):
            result = function(*arguments, **named)
        return iterate(result) if isinstance(result, Iterator) else result

    def iterate(items: Iterator[Any]) -> Iterator[Any]:
        while True:
            with attributed(key, folder, function):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    return call


@contextmanager
def attributed(key: str, folder: str, function: Callable[..., Any] | None = None) -> Iterator[None]:
    """Attribute the exceptions of the block to the job's code; see `guarded`."""
    try:
        yield
    except MemoryError:
        raise
    except DrivetrainError as error:
        if raised_by_us(error):
            raise
        raise _user_code_error(key, error, folder, function) from error
    except BaseException as error:  # SystemExit and KeyboardInterrupt of the job's code, too
        raise _user_code_error(key, error, folder, function) from error


def user_code_error(error: BaseException, folder: str) -> UserCodeError | None:
    """Return the error as one of the job's code if it came out of that: if one of its frames is in ``folder``.

    Not every call of the job's code is the call of a function that the job names: the backward pass of its layers, a
    property of its model.
    """
    if isinstance(error, UserCodeError):
        return error
    if isinstance(error, DrivetrainError) and raised_by_us(error):
        return None
    found = _user_code_error("the job's code", error, folder, None)
    found.__cause__ = error
    return found if found.where else None


def raised_by_us(error: BaseException) -> bool:
    """Check whether the exception was raised by code of Drivetrain, not by a library that it called."""
    frames = _frames(error)
    return bool(frames) and _is_ours(frames[-1][0])


def describe(error: BaseException) -> str:
    """Return type and text of an exception in one line, also if its text cannot be made."""
    text = " ".join(str(traceback.TracebackException(type(error), error, None, compact=True)).split())
    kind = type(error).__name__
    return (f"{kind}: {text}" if text else kind)[:_MAX_SHOWN]


def _user_code_error(key: str, error: BaseException, folder: str, function: Callable[..., Any] | None) -> UserCodeError:
    return UserCodeError(key, describe(error), _where(error, folder, function))


def _where(error: BaseException, folder: str, function: Callable[..., Any] | None) -> str:
    """Return the innermost place in the job's code; where a library's function was named, the place in that."""
    if isinstance(error, SyntaxError) and error.filename and _is_in(error.filename, folder):
        return f"{_name(error.filename, folder)}:{error.lineno}"
    frames = _frames(error)
    own = [(frame, line) for frame, line in frames if _is_in(frame.f_code.co_filename, folder)]
    if not own and function:
        own = [(frame, line) for frame, line in frames if not _is_ours(frame)]
    if own:
        frame, line = own[-1]
        return f"{_name(frame.f_code.co_filename, folder)}:{line}, in {frame.f_code.co_name}"
    code = getattr(inspect.unwrap(function), "__code__", None) if function else None  # it was not even entered
    return f"{_name(code.co_filename, folder)}:{code.co_firstlineno}" if code else ""


def _frames(error: BaseException) -> list[tuple[FrameType, int]]:
    """Return the frames of the traceback with their lines, the innermost last."""
    return list(traceback.walk_tb(error.__traceback__))


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] in _PACKAGES


def _is_in(file: str, folder: str) -> bool:
    return os.path.realpath(file).startswith(os.path.realpath(folder) + os.sep)


def _name(file: str, folder: str) -> str:
    """Return the path of a file as its author knows it: relative to the job's code."""
    return os.path.relpath(os.path.realpath(file), os.path.realpath(folder)) if _is_in(file, folder) else file
