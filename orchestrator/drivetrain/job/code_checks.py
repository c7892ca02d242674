"""Whether the functions that a job names are there: code is read, not imported, for that may be slow."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.user_code import training_is_installed

_OURS = "drivetrain_workers"  # functions of it are named in jobs, too
_OF_RECIPES = ("av", "onnx", "peft", "sacrebleu", "transformers")  # the extra `recipes`, by the names of modules


def check_function(key: str, path: str, folder: Path) -> None:
    """A function must be in the user's file, in ours, or in an installed module.

    Args:
        key: of the job file.
        path: ``package.module:function``.
        folder: of the job.

    Raises:
        InputError: it is not, or what its code imports is not installed. Where only the client is installed, code
            that is not in ``folder`` or in Drivetrain is left to the cluster.
    """
    module, _, name = path.partition(":")
    file = _file(module, folder)
    if file is None:
        top = module.partition(".")[0]
        if top == _OURS or (training_is_installed() and importlib.util.find_spec(top) is None):
            raise InputError(key, repr(path), f"a module in {folder} or an installed one", f"There is no {module}.")
        return
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise InputError(key, repr(path), "a module that is not named like one of Python's own", f"Rename {file}.")
    try:
        tree = ast.parse(file.read_text())
    except SyntaxError as error:
        place = f"{file}:{error.lineno}: {error.msg}"
        raise InputError(key, repr(path), "code that Python can parse", place) from error
    defined, imported = _names(tree)
    if name not in defined + imported:
        close = difflib.get_close_matches(name, defined, n=1)
        fix = f"Did you mean {module}:{close[0]}?" if close else ""
        raise InputError(key, repr(path), f"a function of {file} ({', '.join(defined) or 'none'})", fix)
    if training_is_installed() and (missing := _missing_import(tree, folder, set())):
        of_recipes = missing in _OF_RECIPES
        fix = "Recipes need what `pip install 'drivetrain[recipes]'` brings." if of_recipes else "Install it."
        raise InputError(key, repr(path), f"code whose imports are installed; there is no {missing}", fix)


def check_arguments(
    path: str, folder: Path, args: Mapping[str, Any], files: Iterable[str], facts: Iterable[str]
) -> None:
    """A factory must take what it is given, if it is a plain function in a file of the job's or ours.

    Args:
        path: of the factory.
        folder: of the job.
        args: ``model.args``.
        files: names of ``model.files``.
        facts: names of what it is given where it asks for it.

    Raises:
        InputError: it takes no such argument, or wants one that nobody gives.
    """
    module, _, name = path.partition(":")
    file = _file(module, folder)
    found = _last_binding(ast.parse(file.read_text()), name) if file else None
    if not isinstance(found, ast.FunctionDef) or found.decorator_list:
        return
    signature = found.args
    taken = [each.arg for each in (*signature.args, *signature.kwonlyargs)]
    given = {**{key: f"model.args.{key}" for key in args}, **{key: f"model.files.{key}" for key in files}}
    for key, where in given.items():
        if key not in taken and not signature.kwarg:
            close = difflib.get_close_matches(key, taken, n=1)
            fix = f"Did you mean {close[0]}?" if close else ""
            raise InputError(where, repr(args.get(key, key)), f"an argument of {path} ({', '.join(taken)})", fix)
    positional = [*signature.posonlyargs, *signature.args]
    wanted = positional[: len(positional) - len(signature.defaults)]
    wanted += [each for each, value in zip(signature.kwonlyargs, signature.kw_defaults, strict=True) if value is None]
    if missing := [each.arg for each in wanted if each.arg not in {*given, *facts}]:
        raise InputError("model.args", f"no {', '.join(missing)}", f"all that {path} wants")


def _last_binding(tree: ast.Module, name: str) -> ast.stmt | None:
    """What a name stands for once a module has been read, as far as its top level tells."""
    for node in reversed(tree.body):
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                bound = [node.name]
            case ast.Import() | ast.ImportFrom():
                bound = [alias.asname or alias.name for alias in node.names]
            case _:  # an assignment, or a block that may hold anything
                parts = list(ast.walk(node))
                bound = [part.id for part in parts if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)]
                bound += [part.name for part in parts if isinstance(part, ast.FunctionDef)]
        if name in bound:
            return node
    return None


def _file(module: str, folder: Path) -> Path | None:
    """The source of a module in the job's folder, or of one of ours."""
    top, *rest = module.split(".")
    places = [folder / top]
    if top == _OURS:
        spec = importlib.util.find_spec(top)
        assert spec
        assert spec.submodule_search_locations
        places.append(Path(spec.submodule_search_locations[0]))
    for place in places:
        path = place.joinpath(*rest)
        for file in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
            if file.is_file():
                return file
    return None


def _names(tree: ast.Module) -> tuple[list[str], list[str]]:
    """What a module defines, and what it imports."""
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    defined += [t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)]
    return defined, [a.asname or a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names]


def _missing_import(tree: ast.Module, folder: Path, seen: set[str]) -> str:
    """A module that code imports at its top, itself or by way of other files of the folder, and that is not there."""
    imported = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    imported += [
        node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.module and not node.level
    ]
    for name in imported:
        top = name.partition(".")[0]
        if top in seen:
            continue
        seen.add(top)
        file = folder / f"{top}.py"
        if file.is_file():
            with suppress(SyntaxError):  # whoever names it is told
                if missing := _missing_import(ast.parse(file.read_text()), folder, seen):
                    return missing
        elif not (folder / top).is_dir() and importlib.util.find_spec(top) is None:
            return top
    return ""
