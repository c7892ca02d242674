"""The modules of a job's code, found as Python finds them on a rank, and the imports between them."""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from drivetrain_pipelines.user_code import SOURCE_FOLDER, training_is_installed

from drivetrain.job.code_files import Code, Why
from drivetrain.job.shadowed import is_shadowed

OWN_PACKAGE = "drivetrain_workers"  # jobs may name its functions
_RECIPE_PACKAGES = ("av", "onnx", "peft", "sacrebleu", "transformers")  # modules of the extra `recipes`


class UnreadableError(Exception):
    """A file is not Python code; the message has its line."""


@dataclass(frozen=True)
class Problem:
    """A reason why a module cannot be imported, and what to do about it."""

    allowed: str
    fix: str


@dataclass(frozen=True)
class _Import:
    """A statement that imports ``module``, or ``names`` from it; ``level`` is the number of leading dots."""

    line: int
    module: str
    level: int = 0
    names: tuple[str, ...] = ()


class Modules:
    """The modules of a job's code.

    Args:
        code: the files of the code.
        runs_elsewhere: whether other modules may be installed where the code will run.
    """

    def __init__(self, code: Code, runs_elsewhere: bool = False) -> None:
        self.folder = code.folder
        self._knows_installed = not runs_elsewhere and training_is_installed()
        self._code = code
        in_source = any(name.startswith(f"{SOURCE_FOLDER}/") for name in code.contents)
        is_package = f"{SOURCE_FOLDER}/__init__.py" in code.contents
        self._roots = ("", f"{SOURCE_FOLDER}/") if in_source and not is_package else ("",)
        self._folders = {str(parent) for name in code.contents for parent in Path(name).parents}
        self._trees: dict[Path, ast.Module] = {}

    def file(self, module: str) -> Path | None:
        """Return the source file of a module in the code or in Drivetrain."""
        if name := self._find(module):
            return self.folder / name
        top, *rest = module.split(".")
        if top == OWN_PACKAGE and (spec := importlib.util.find_spec(top)) and spec.submodule_search_locations:
            path = Path(spec.submodule_search_locations[0]).joinpath(*rest)
            files = (path / "__init__.py", path.with_name(f"{path.name}.py"))
            return next((file for file in files if os.path.isfile(file)), None)
        return None

    def tree(self, file: Path) -> ast.Module:
        """Return the parsed source of a file that `file` has returned.

        Raises:
            UnreadableError: it is not Python code.
        """
        if file not in self._trees:
            inside = file.is_relative_to(self.folder)
            content = self._code.contents[file.relative_to(self.folder).as_posix()] if inside else file.read_bytes()
            try:
                self._trees[file] = ast.parse(content)
            except SyntaxError as error:
                raise UnreadableError(f"{file}:{error.lineno or 1}: {error.msg}") from error
            except (ValueError, RecursionError, MemoryError) as error:
                raise UnreadableError(f"{file}:1: {error}") from error
        return self._trees[file]

    def missing(self, module: str) -> Problem | None:
        """Return why there is no such module, in the code or installed.

        Where the code will run elsewhere, or only the client is installed, other modules are left to the cluster.
        """
        top, allowed = module.partition(".")[0], f"a module in {self.folder} or an installed one"
        known = self._is_ours(top) or top == OWN_PACKAGE or (self._knows_installed and not self._installed(top))
        if reason := self._reason(module) or ("" if not known else f"Module {module} does not exist."):
            return Problem(allowed, reason)
        return None

    def import_problem(self, module: str) -> Problem | None:
        """Return the first reason why a module of the code cannot be imported; its top-level statements are followed.

        Raises:
            UnreadableError: a file on the way is not Python code.
        """
        file = self.file(module)
        shadowed = self._shadowed(module.partition(".")[0], file.name if file else module)
        return shadowed or self._follow(module, set())

    def _follow(self, module: str, seen: set[Path]) -> Problem | None:
        file = self.file(module)
        if file is None or file in seen:
            return None
        seen.add(file)
        tree = self.tree(file)
        for line, top in _imported_tops(tree):
            if shadowed := self._shadowed(top, f"{file.name}:{line}"):
                return shadowed
        for statement in _imports(tree):
            if problem := self._check(statement, module, file, seen):
                return problem
        return None

    def _check(self, statement: _Import, module: str, file: Path, seen: set[Path]) -> Problem | None:
        where = f"{file.name}:{statement.line}"
        target = statement.module
        if statement.level:
            package = module if file.name == "__init__.py" else module.rpartition(".")[0]
            parts = package.split(".") if package else []
            if len(parts) < statement.level:
                return self._outside_a_package(statement, module, where)
            above = parts[: len(parts) - statement.level + 1]
            target = ".".join([*above, *([statement.module] if statement.module else [])])
        top = target.partition(".")[0]
        if not self._is_ours(top):
            return self._not_installed(top, where)
        inner = [target.rsplit(".", depth)[0] for depth in range(target.count("."), -1, -1)]
        for each in inner:
            if not self._exists(each) and not self._is_spread(top):
                fix = self._reason(each) or f"Module {each} does not exist."
                return Problem(f"code with imports that exist; {where} imports {each}", fix)
            if problem := self._follow(each, seen):
                return problem
        for name in statement.names:
            if problem := self._follow(f"{target}.{name}", seen):
                return problem
        return None

    def _outside_a_package(self, statement: _Import, module: str, where: str) -> Problem:
        written = "." * statement.level + statement.module
        allowed = f"modules whose relative imports stay in their package; {where} imports from {written}"
        if (self.folder / "__init__.py").is_file():
            fix = f"Move the job file to {self.folder.parent} and name the module {self.folder.name}.{module} there."
        elif statement.module:
            fix = f"Write `from {statement.module} import ...`."
        else:
            fix = "Write `import ...` without the dots."
        return Problem(allowed, fix)

    def _shadowed(self, top: str, where: str) -> Problem | None:
        """Return the problem of a module of the code that has the name of one that Drivetrain uses itself."""
        name = self._find(top)
        if name is None or not is_shadowed(top, self._search_path()):
            return None
        file = self.folder / (Path(name).parent if name.endswith("/__init__.py") else name)
        owner = "Python's standard library" if top in sys.stdlib_module_names else "a package that Drivetrain uses"
        return Problem(f"modules that are not named as one of {owner}; {where} means {top}", f"Rename {file}.")

    def _not_installed(self, top: str, where: str) -> Problem | None:
        if self._installed(top):
            return None
        reason = self._reason(top)
        if not reason and not self._knows_installed:
            return None
        install = "Run `pip install 'drivetrain[recipes]'`." if top in _RECIPE_PACKAGES else f"Install {top}."
        allowed = f"code with installed imports; {top} is not installed ({where} imports it)"
        return Problem(allowed, reason or install)

    def _reason(self, module: str) -> str:
        """Return why the code lacks a module whose file is there; an empty text if there is none."""
        path = module.replace(".", "/")
        for root in self._roots:
            base = f"{root}{path}".removesuffix("/ipynb")
            if os.path.isfile(self.folder / f"{base}.ipynb"):
                return f"Run `jupyter nbconvert --to script {base}.ipynb`: a notebook is no module."
            parents = [str(each) for each in Path(base).parents if str(each) != "."]
            for name in (f"{base}.py", base, *parents):
                if why := self._code.left_out.get(name):
                    return f"The code of a run leaves out {name}: {_ADVICE[why]}"
        return ""

    def _find(self, module: str) -> str | None:
        """Return the name of a module's file in the code. Of a top-level name, the first root that has it counts."""
        top, *rest = module.split(".")
        for root in self._roots_of(top):
            path = "/".join([root + top, *rest])
            for name in (f"{path}/__init__.py", f"{path}.py"):
                if name in self._code.contents:
                    return name
        return None

    def _roots_of(self, top: str) -> tuple[str, ...]:
        for root in self._roots:
            if not {f"{root}{top}/__init__.py", f"{root}{top}.py"}.isdisjoint(self._code.contents):
                return (root,)
        return self._roots  # of a namespace package, all have a part

    def _exists(self, module: str) -> bool:
        path = module.replace(".", "/")
        return self._find(module) is not None or any(f"{root}{path}" in self._folders for root in self._roots)

    def _is_ours(self, top: str) -> bool:
        """Return whether the code provides a top-level name: an installed package wins over a folder without code."""
        return self._find(top) is not None or (self._exists(top) and not self._installed(top))

    def _is_spread(self, top: str) -> bool:
        """Return whether a namespace package has parts elsewhere, too."""
        return self._find(top) is None and self._installed(top)

    def _installed(self, top: str) -> bool:
        """Return whether a module is found without the job's folder and without the current one."""
        if top in sys.builtin_module_names or top in sys.stdlib_module_names:
            return True
        for finder in sys.meta_path:
            path = self._search_path() if finder is PathFinder else None
            if finder.find_spec(top, path):
                return True
        return False

    def _search_path(self) -> list[str]:
        own = {os.path.normpath(self.folder / root) for root in self._roots} | {os.getcwd()}
        return [entry for entry in sys.path if entry and os.path.normpath(entry) not in own]


_ADVICE = {
    Why.IGNORED: "git ignores it. Remove it from .gitignore.",
    Why.HIDDEN: "it is hidden. Rename it.",
    Why.SECRET: "its name is that of a secret. Rename it.",
    Why.DATA: "the job names it as data.",
    Why.OUTSIDE: "it is a link out of the project. Copy it into the folder, or install it as a package.",
    Why.BROKEN: "it is a link to nothing or in a circle.",
}


def _imports(tree: ast.Module) -> Iterator[_Import]:
    """Yield the imports that always run: those inside functions and conditions may be meant for other machines."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield _Import(node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            yield _Import(node.lineno, node.module or "", node.level, tuple(alias.name for alias in node.names))


def _imported_tops(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and top-level name of every import, also of those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.lineno, node.module.partition(".")[0]
