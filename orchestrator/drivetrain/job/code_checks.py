"""Checks of the functions that a job names. Code is parsed, not imported, since imports may be slow."""

from __future__ import annotations

import ast
import difflib
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from drivetrain_pipelines.errors import InputError

from drivetrain.job.modules import Modules, UnreadableError

_Function = ast.FunctionDef | ast.AsyncFunctionDef


class CodeChecks:
    """Checks of functions in the code of one job.

    Args:
        modules: the modules of the code.
    """

    def __init__(self, modules: Modules) -> None:
        self._modules = modules

    def check_function(self, key: str, path: str) -> None:
        """Check that a function exists in the job's code, in this package or in an installed module.

        Args:
            key: of the job file.
            path: ``package.module:function``.

        Raises:
            InputError: the function does not exist, or its module cannot be imported.
        """
        module, _, name = path.partition(":")
        file = self._modules.file(module)
        if file is None:
            if problem := self._modules.missing(module):
                raise InputError(key, repr(path), problem.allowed, problem.fix)
            return
        if module.partition(".")[0] in sys.stdlib_module_names:
            allowed = "a module whose name is not in Python's standard library"
            raise InputError(key, repr(path), allowed, f"Rename {file}.")
        try:
            names = _Names.of(self._modules.tree(file))
            if not names.may_have(name):
                close = difflib.get_close_matches(name, names.defined, n=1)
                fix = f"Did you mean {module}:{close[0]}?" if close else ""
                listed = ", ".join(names.defined) or "none"
                raise InputError(key, repr(path), f"a function of {file} ({listed})", fix)
            problem = self._modules.import_problem(module)
        except UnreadableError as error:
            raise InputError(key, repr(path), "valid Python code", str(error)) from error
        if problem:
            raise InputError(key, repr(path), problem.allowed, problem.fix)

    def check_factory(self, path: str, args: Mapping[str, Any], files: Iterable[str], facts: Iterable[str]) -> None:
        """Check the arguments of a factory that is a plain function or class of the job or of this package.

        Args:
            path: of the factory.
            args: ``model.args``.
            files: names of ``model.files``.
            facts: names of optional arguments that are passed on request.

        Raises:
            InputError: the factory does not accept an argument, or a required one is missing.
        """
        signature = self._signature(path)
        if signature is None:
            return
        accepted = [each.arg for each in (*signature.args, *signature.kwonlyargs)]
        given = {**{key: f"model.args.{key}" for key in args}, **{key: f"model.files.{key}" for key in files}}
        for key, where in given.items():
            if key not in accepted and not signature.kwarg:
                close = difflib.get_close_matches(key, accepted, n=1)
                fix = f"Did you mean {close[0]}?" if close else ""
                allowed = f"an argument of {path} ({', '.join(accepted)})"
                raise InputError(where, repr(args.get(key, key)), allowed, fix)
        required = [*_required_positional(signature), *_required_keywords(signature)]
        if missing := [name for name in required if name not in {*given, *facts}]:
            raise InputError("model.args", f"no {', '.join(missing)}", f"all required arguments of {path}")

    def check_call(self, key: str, path: str, given: tuple[str, ...], optional: Iterable[str]) -> None:
        """Check that a function can be called with positional arguments.

        Args:
            key: of the job file.
            given: what the arguments are, in order.
            optional: names of arguments that are passed by name if the function has them.

        Raises:
            InputError: it takes fewer or more.
        """
        signature = self._signature(path)
        if signature is None:
            return
        named = set(optional)
        positional = [each.arg for each in (*signature.posonlyargs, *signature.args)]
        required = _required_positional(signature)
        lacks = [name for name in required[len(given) :] if name not in named]
        lacks += [name for name in _required_keywords(signature) if name not in named]
        few = len(positional) < len(given) and not signature.vararg
        twice = [name for name in positional[: len(given)] if name in named]
        if few or lacks or twice:
            arguments = ", ".join([*positional, *(each.arg for each in signature.kwonlyargs)])
            allowed = f"a function that can be called with ({', '.join(given)})"
            raise InputError(key, f"{path}({arguments})", allowed)

    def _signature(self, path: str) -> ast.arguments | None:
        """Return the arguments of a function or class where its source shows them."""
        module, _, name = path.partition(":")
        file = self._modules.file(module)
        found = _last_binding(self._modules.tree(file), name) if file else None
        if isinstance(found, ast.ClassDef) and not (found.decorator_list or found.keywords):
            made = next((each for each in found.body if _is_named(each, "__init__")), None)
            has_new = any(_is_named(each, "__new__") for each in found.body)
            if not isinstance(made, _Function) or made.decorator_list or has_new or not made.args.args:
                return None
            bound = made.args
            return ast.arguments(
                bound.posonlyargs, bound.args[1:], bound.vararg, bound.kwonlyargs, bound.kw_defaults, bound.kwarg,
                bound.defaults,
            )  # fmt: skip
        if not isinstance(found, ast.FunctionDef) or found.decorator_list:
            return None
        return found.args


def _required_positional(signature: ast.arguments) -> list[str]:
    positional = [each.arg for each in (*signature.posonlyargs, *signature.args)]
    return positional[: len(positional) - len(signature.defaults)]


def _required_keywords(signature: ast.arguments) -> list[str]:
    pairs = zip(signature.kwonlyargs, signature.kw_defaults, strict=True)
    return [each.arg for each, default in pairs if default is None]


def _is_named(node: ast.stmt, name: str) -> bool:
    return isinstance(node, _Function) and node.name == name


def _last_binding(tree: ast.Module, name: str) -> ast.stmt | None:
    """Return the last top-level statement of a module that binds a name."""
    return next((node for node in reversed(tree.body) if name in _Names.of(ast.Module([node], [])).all), None)


class _Names:
    """The names that a module binds when it is imported.

    Attributes:
        defined: names of functions, classes and variables.
        imported: names that are imported from other modules.
        modules: names of imported modules, which cannot be called.
        open: whether there may be others, by ``import *`` or ``__getattr__``.
    """

    def __init__(self) -> None:
        self.defined = list[str]()
        self.imported = list[str]()
        self.modules = list[str]()
        self.open = False

    @classmethod
    def of(cls, tree: ast.Module) -> _Names:
        """Return the names of a module."""
        names = cls()
        for node in _executed(tree.body):
            match node:
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                    names.defined.append(node.name)
                    names.open |= node.name == "__getattr__"
                case ast.ImportFrom():
                    names.open |= any(alias.name == "*" for alias in node.names)
                    names.imported += [alias.asname or alias.name for alias in node.names]
                case ast.Import():
                    names.modules += [alias.asname or alias.name.partition(".")[0] for alias in node.names]
                case ast.Name(id=name, ctx=ast.Store()):
                    names.defined.append(name)
        return names

    @property
    def all(self) -> set[str]:
        """All names."""
        return {*self.defined, *self.imported, *self.modules}

    def may_have(self, name: str) -> bool:
        """Return whether the module may bind a name to something that can be called."""
        return self.open or name in self.defined or name in self.imported


def _executed(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Yield the nodes of a module that run in its own scope: not the insides of functions and classes."""
    for node in body:
        yield node
        if not isinstance(node, _Function | ast.ClassDef | ast.Lambda):
            yield from _executed(ast.iter_child_nodes(node))
