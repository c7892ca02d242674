"""Checks that the functions named in a job exist. Code is parsed, not imported, since imports may be slow."""

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

_OWN_PACKAGE = "drivetrain_workers"  # jobs may name its functions
_RECIPE_PACKAGES = ("av", "onnx", "peft", "sacrebleu", "transformers")  # modules of the extra `recipes`


def check_function(key: str, path: str, folder: Path) -> None:
    """Check that a function exists in the job's folder, in this package or in an installed module.

    Args:
        key: of the job file.
        path: ``package.module:function``.
        folder: of the job.

    Raises:
        InputError: the function does not exist, or an import of its file is not installed. Where only the client is
            installed, code outside ``folder`` and Drivetrain is left to the cluster.
    """
    module, _, name = path.partition(":")
    file = _file(module, folder)
    if file is None:
        top = module.partition(".")[0]
        if top == _OWN_PACKAGE or (training_is_installed() and importlib.util.find_spec(top) is None):
            raise InputError(
                key, repr(path), f"a module in {folder} or an installed one", f"Module {module} does not exist."
            )
        return
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise InputError(key, repr(path), "a module whose name is not in Python's standard library", f"Rename {file}.")
    try:
        tree = ast.parse(file.read_text())
    except SyntaxError as error:
        location = f"{file}:{error.lineno}: {error.msg}"
        raise InputError(key, repr(path), "valid Python code", location) from error
    defined, imported = _names(tree)
    if name not in defined + imported:
        close = difflib.get_close_matches(name, defined, n=1)
        fix = f"Did you mean {module}:{close[0]}?" if close else ""
        raise InputError(key, repr(path), f"a function of {file} ({', '.join(defined) or 'none'})", fix)
    if training_is_installed() and (missing := _missing_import(tree, folder, set())):
        fix = "Run `pip install 'drivetrain[recipes]'`." if missing in _RECIPE_PACKAGES else f"Install {missing}."
        raise InputError(key, repr(path), f"code with installed imports; {missing} is not installed", fix)


def check_arguments(
    path: str, folder: Path, args: Mapping[str, Any], files: Iterable[str], facts: Iterable[str]
) -> None:
    """Check the arguments of a factory that is a plain function of the job or of this package.

    Args:
        path: of the factory.
        folder: of the job.
        args: ``model.args``.
        files: names of ``model.files``.
        facts: names of optional arguments that are passed on request.

    Raises:
        InputError: the factory does not accept an argument, or a required one is missing.
    """
    module, _, name = path.partition(":")
    file = _file(module, folder)
    found = _last_binding(ast.parse(file.read_text()), name) if file else None
    if not isinstance(found, ast.FunctionDef) or found.decorator_list:
        return
    signature = found.args
    accepted = [each.arg for each in (*signature.args, *signature.kwonlyargs)]
    given = {**{key: f"model.args.{key}" for key in args}, **{key: f"model.files.{key}" for key in files}}
    for key, where in given.items():
        if key not in accepted and not signature.kwarg:
            close = difflib.get_close_matches(key, accepted, n=1)
            fix = f"Did you mean {close[0]}?" if close else ""
            raise InputError(where, repr(args.get(key, key)), f"an argument of {path} ({', '.join(accepted)})", fix)
    positional = [*signature.posonlyargs, *signature.args]
    required = positional[: len(positional) - len(signature.defaults)]
    required += [each for each, value in zip(signature.kwonlyargs, signature.kw_defaults, strict=True) if value is None]
    if missing := [each.arg for each in required if each.arg not in {*given, *facts}]:
        raise InputError("model.args", f"no {', '.join(missing)}", f"all required arguments of {path}")


def _last_binding(tree: ast.Module, name: str) -> ast.stmt | None:
    """Return the last top-level statement of a module that binds a name."""
    for node in reversed(tree.body):
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                bound = [node.name]
            case ast.Import() | ast.ImportFrom():
                bound = [alias.asname or alias.name for alias in node.names]
            case _:  # an assignment, or a block with any statements
                parts = list(ast.walk(node))
                bound = [part.id for part in parts if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)]
                bound += [part.name for part in parts if isinstance(part, ast.FunctionDef)]
        if name in bound:
            return node
    return None


def _file(module: str, folder: Path) -> Path | None:
    """Return the source file of a module in the job's folder or in this package."""
    top, *rest = module.split(".")
    candidates = [folder / top]
    if top == _OWN_PACKAGE:
        spec = importlib.util.find_spec(top)
        assert spec
        assert spec.submodule_search_locations
        candidates.append(Path(spec.submodule_search_locations[0]))
    for candidate in candidates:
        path = candidate.joinpath(*rest)
        for file in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
            if file.is_file():
                return file
    return None


def _names(tree: ast.Module) -> tuple[list[str], list[str]]:
    """Return the names that a module defines and the names that it imports."""
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    defined += [t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)]
    return defined, [a.asname or a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names]


def _missing_import(tree: ast.Module, folder: Path, seen: set[str]) -> str:
    """Return a missing module among the top-level imports of code and of its imports in the folder."""
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
            with suppress(SyntaxError):  # reported by the check of that file
                if missing := _missing_import(ast.parse(file.read_text()), folder, seen):
                    return missing
        elif not (folder / top).is_dir() and importlib.util.find_spec(top) is None:
            return top
    return ""
