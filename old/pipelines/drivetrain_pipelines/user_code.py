"""Loading of functions that a job file names as ``package.module:function``; the check for the training packages."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

from drivetrain_pipelines.errors import InputError


def training_is_installed() -> bool:
    """Check whether the packages of ``drivetrain[train]`` are installed, not only the client."""
    return importlib.util.find_spec("torch") is not None


def load_function(path: str, folder: str, key: str) -> Callable[..., Any]:
    """Import ``path`` with ``folder`` (the job's code) first on the import path.

    Args:
        path: ``package.module:function``.
        folder: directory of the user's code.
        key: the job file's key that holds ``path``, for the error message.

    Raises:
        InputError: the module or the function does not exist.
    """
    module_name, _, function_name = path.partition(":")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()  # the code may have been written since Python last read the folder
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(key, repr(path), f"a module importable from {folder}", str(error)) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        names = ", ".join(name for name in dir(module) if not name.startswith("_")) or "nothing"
        raise InputError(key, repr(path), f"a function of {module.__file__}", f"It defines {names}.")
    return function  # type: ignore[no-any-return]  # a callable found by name has no static signature
