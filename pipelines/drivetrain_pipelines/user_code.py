"""Loading of functions that a job file names as ``package.module:function``; the check for the training packages."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from drivetrain_pipelines.errors import InputError

SOURCE_FOLDER = "src"
_WITH_EFFECTS = {"this", "antigravity"}  # modules that print or open something when they are imported
_started_in = os.getcwd()
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
    """
    module_name, _, function_name = path.partition(":")
    work_in(Path(folder))
    top = module_name.partition(".")[0]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(key, repr(path), f"a module importable from {folder}", str(error)) from error
    except SyntaxError as error:
        raise InputError(
            key, repr(path), "valid Python code", f"{error.filename}:{error.lineno}: {error.msg}"
        ) from error
    if _provides(_entered, top) and not _is_inside(sys.modules[top], _entered):
        allowed = (
            f"a module whose name no other has; {top} is {sys.modules[top].__name__} of {_origin(sys.modules[top])}"
        )
        raise InputError(key, repr(path), allowed, f"Rename {top} in {folder}.")
    function = getattr(module, function_name, None)
    if not callable(function):
        names = ", ".join(name for name in dir(module) if not name.startswith("_")) or "nothing"
        raise InputError(key, repr(path), f"a function of {module.__file__}", f"It defines {names}.")
    return function  # type: ignore[no-any-return]  # a callable found by name has no static signature


def _provides(roots: list[str], top: str) -> bool:
    return any((Path(root) / top / "__init__.py").is_file() or (Path(root) / f"{top}.py").is_file() for root in roots)


def _origin(module: ModuleType) -> str:
    return str(getattr(module, "__file__", None) or "Python itself")
