"""The job's code: the files of its folder that validation, packages, snapshots and ranks see, and no others."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path

import fsspec
import yaml
from drivetrain_pipelines.errors import InputError

from drivetrain.home import Home
from drivetrain.job import ignore_rules
from drivetrain.job.ignore_rules import Nested
from drivetrain.job.secret_names import is_secret

MAX_BYTES = 64 << 20
MAX_FILES = 10_000
_SHOWN = 3
_CACHES = ("__pycache__", "node_modules", "venv", "mlruns", "mlartifacts", "mlflow.db", ".DS_Store")
_OUTPUTS = ("-report.html", "-scaling.png")  # ends of the names that `drivetrain` gives its results by default
_JOB_KEYS = {"name", "data", "model", "training"}


class Why(StrEnum):
    """The reason why a file or folder is not part of the code."""

    IGNORED = "ignored by git"
    HIDDEN = "hidden"
    SECRET = "named like a secret"  # noqa: S105  # not one
    DATA = "named as data or as an output in the job"
    OUTSIDE = "links out of the project"
    BROKEN = "links to nothing or in a circle"


@dataclass(frozen=True)
class Code:
    """The files of a job's code, as they were when they were read.

    Attributes:
        folder: the job's folder.
        contents: of each file, by its name in the folder, in order.
        executable: names of the files that can be executed.
        left_out: files and folders that are not part of the code, each with the reason.
    """

    folder: Path
    contents: Mapping[str, bytes]
    executable: frozenset[str] = frozenset()
    left_out: Mapping[str, Why] = field(default_factory=dict)

    @cached_property
    def version(self) -> str:
        """Digest of names, contents and modes of all files."""
        digest = hashlib.sha256()
        for name, content in self.contents.items():
            mode = b"x" if name in self.executable else b"-"
            digest.update(os.fsencode(name) + b"\0" + mode + hashlib.sha256(content).digest())
        return digest.hexdigest()[:16]

    def write(self, target: Path) -> None:
        """Write the files into a new folder."""
        target.mkdir(parents=True)
        for name, content in self.contents.items():
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(0o755 if name in self.executable else 0o644)

    def summary(self) -> str:
        """Return the number of files, and what is left out for which reason, in one line."""
        count = len(self.contents)
        parts = list[str]()
        for why in Why:
            if names := [name for name, reason in self.left_out.items() if reason is why]:
                listed = ", ".join(map(_printable, names[:_SHOWN])) + ", ..." * (len(names) > _SHOWN)
                parts.append(f"{len(names)} {why} ({listed})")
        text = f"{count} file{'s' * (count != 1)}, {_size(sum(map(len, self.contents.values())))}"
        return f"{text}; left out: {', '.join(parts)}" if parts else text


def read_code(
    folder: Path,
    named: Iterable[str] = (),
    max_bytes: int = MAX_BYTES,
    in_project: bool = True,
    job_files: bool = False,
) -> Code:
    """Read the code of a job.

    Everything in the folder is code, except what git ignores, hidden folders, caches, virtual environments, secrets by
    their name, job files, and the data that the job names. A link is followed where it leads inside the project: the
    git repository, or else the folder that contains the job's folder.

    Args:
        named: paths and globs of data and outputs that the job names; relative to the folder, or absolute.
        in_project: whether the ``.gitignore`` files of the folders above count, up to the git repository.
        job_files: whether job files are read, too.

    Raises:
        InputError: a file cannot be read, or there are too many or too large files.
    """
    walk = _Walk(folder, _expand(folder, named), in_project, job_files)
    try:
        walk.visit(folder, "", ignore_rules.outer_rules(folder) if in_project else (), (os.path.realpath(folder),))
        _check_size(folder, walk.found, max_bytes)
        contents = {name: path.read_bytes() for name, path in sorted(walk.found.items())}
    except OSError as error:
        fix = "Make it readable, or list it in .gitignore."
        raise InputError(str(error.filename or folder), str(error.strerror), "a readable file", fix) from error
    executable = frozenset(name for name, path in walk.found.items() if os.access(path, os.X_OK))
    return Code(folder, contents, executable, dict(sorted(walk.left_out.items())))


def data_files(folder: Path, named: Iterable[str]) -> dict[str, Path]:
    """Return the files inside the folder that a job names as data, by their names in the folder; no hidden ones.

    Raises:
        InputError: one of them is a link out of the project.
    """
    files, project = dict[str, Path](), _project(folder)
    for path in sorted(_expand(folder, named)):
        inside = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
        for each in inside:
            name = each.relative_to(folder)
            if not Path(os.path.realpath(each)).is_relative_to(project):
                fix = "Name it by an absolute path or URL that the cluster can read."
                raise InputError(str(each), "data behind a link out of the project", f"data inside {project}", fix)
            if not any(part.startswith(".") for part in name.parts) and not is_secret(name.parts):
                files[name.as_posix()] = each
    return files


class _Walk:
    """Visits the files of a folder."""

    def __init__(self, folder: Path, data: set[Path], in_project: bool, job_files: bool) -> None:
        self._folder, self._data, self._job_files = folder, data, job_files
        self._project = _project(folder) if in_project else folder
        self._home = Home.path_of_environment()
        self.found: dict[str, Path] = {}
        self.left_out: dict[str, Why] = {}

    def visit(self, path: Path, prefix: str, rules: Nested, above: tuple[str, ...], in_data: bool = False) -> None:
        """Collect the files below a folder.

        Args:
            prefix: name of the folder in the job's folder, with a slash at the end.
            rules: of the folders above; see `ignore_rules`.
            above: real paths of the folder and those above it.
            in_data: whether the folder holds data, in which only Python modules are code.
        """
        rules = ignore_rules.extended(rules, path)
        for entry in sorted(path.iterdir()):
            name = f"{prefix}{entry.name}"
            is_folder, is_file = entry.is_dir(), entry.is_file()
            if _is_cache(entry) or entry == self._home or (is_file and path == self._folder and self._is_apart(entry)):
                continue
            data = in_data or entry in self._data
            if why := self._why_not(entry, name, is_folder, rules, above):
                self.left_out[name] = Why.DATA if data else why
            elif is_folder:
                if data and not in_data:
                    self.left_out[name] = Why.DATA
                self.visit(entry, f"{name}/", rules, (*above, os.path.realpath(entry)), data)
            elif is_file and data and entry.suffix != ".py":
                if not in_data:
                    self.left_out[name] = Why.DATA
            elif is_file:
                self.found[name] = entry
                if len(self.found) > MAX_FILES:
                    _refuse_many(self._folder, self.found)

    def _why_not(self, entry: Path, name: str, is_folder: bool, rules: Nested, above: tuple[str, ...]) -> Why | None:
        if is_secret(Path(name).parts):
            return Why.SECRET
        if is_folder and entry.name.startswith("."):
            return Why.HIDDEN
        if ignore_rules.ignores(rules, entry, is_folder):
            return Why.IGNORED
        return self._why_not_followed(Path(os.path.realpath(entry)), above) if entry.is_symlink() else None

    def _why_not_followed(self, target: Path, above: tuple[str, ...]) -> Why | None:
        if not target.exists() or str(target) in above:
            return Why.BROKEN
        if not target.is_relative_to(self._project):
            return Why.OUTSIDE
        inner = target.relative_to(self._project).parts
        hidden = any(part.startswith(".") for part in inner[:-1])
        return Why.SECRET if hidden or is_secret(inner) else None

    def _is_apart(self, path: Path) -> bool:
        """Return whether a file in the job's folder is a job file or a result of a command, which no run needs."""
        is_job_file = path.suffix in (".yaml", ".yml") and not self._job_files and _is_job_file(path)
        return is_job_file or path.name.endswith(_OUTPUTS)


def _project(folder: Path) -> Path:
    """Return the folder inside which links are followed."""
    return Path(os.path.realpath(ignore_rules.repository(folder) or folder.parent))


def _is_cache(path: Path) -> bool:
    return path.name in _CACHES or path.suffix == ".pyc" or path.name == ".git" or (path / "pyvenv.cfg").is_file()


def _is_job_file(path: Path) -> bool:
    try:
        document = yaml.load(path.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506  # safe
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.keys() >= _JOB_KEYS


def _expand(folder: Path, named: Iterable[str]) -> set[Path]:
    """Return the existing paths inside the folder that data names; the folder itself is no data."""
    found = set[Path]()
    for each in named:
        path = os.path.normpath(folder / os.path.expanduser(each))
        matches = fsspec.filesystem("file").glob(path) if any(sign in path for sign in "*?[") else [path]
        found |= {Path(match) for match in matches}
    return {path for path in found if path != folder and path.is_relative_to(folder) and os.path.exists(path)}


def _check_size(folder: Path, found: Mapping[str, Path], max_bytes: int) -> None:
    sizes = {name: path.stat().st_size for name, path in found.items()}
    if (total := sum(sizes.values())) > max_bytes:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:_SHOWN]
        listed = ", ".join(f"{_printable(name)}: {_size(sizes[name])}" for name in largest)
        fix = "List files that the code does not need in .gitignore; name large ones that it needs in model.files."
        given = f"{_size(total)} of code, more than the limit (the largest files are {listed})"
        raise InputError(str(folder), given, f"at most {_size(max_bytes)}", fix)


def _refuse_many(folder: Path, found: Mapping[str, Path]) -> None:
    tops = [name.partition("/")[0] for name in found]
    fullest = max(set(tops), key=tops.count)
    given = f"more than {MAX_FILES:,} files of code, most of them in {_printable(fullest)}"
    fix = "Move the job into a separate folder, or list what the code does not need in .gitignore."
    raise InputError(str(folder), given, f"at most {MAX_FILES:,}", fix)


def _printable(name: str) -> str:
    return name if name.isprintable() else ascii(name)


def _size(count: int) -> str:
    for unit, bits in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 1 << bits:
            return f"{count / (1 << bits):.3g} {unit}"
    return f"{count} B"
