"""The inputs that a user gives to `drivetrain predict`: files of folders and globs, and texts."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.raw.formats import endings_of
from drivetrain_pipelines.spec import DataSpec

_FORMATS = {
    "tokens": ("text", "jsonl", "csv", "parquet", "arrow"),
    "image": ("images",),
    "audio": ("audio",),
    "columns": ("csv", "jsonl", "parquet", "arrow"),
}
_ANY = ("text", "jsonl", "csv", "parquet", "arrow", "images", "audio")
_FIX = "A text that looks like the name of a file can be given in a file."


def expand(inputs: Sequence[str], spec: DataSpec | None) -> list[str]:
    """Return inputs with folders and globs replaced by the files in them, in order of their names.

    Args:
        inputs: see `drivetrain.api.interface.Runs.predict`.
        spec: the job's data section; None where only a server knows it.

    Raises:
        InputError: there is no input, a folder has no file of the job's format, a file does not exist.
    """
    if not inputs:
        raise InputError("INPUT", "nothing", _allowed(spec))
    return [name for given in inputs for name in _names(given, spec)]


def _names(given: str, spec: DataSpec | None) -> Iterator[str]:
    if given == "-":
        raise InputError("INPUT", "'-'", _allowed(spec), "Standard input is not read; write it to a file.")
    endings = _endings(spec)
    if _is(given, Path.is_dir):
        inside = sorted(path for path in Path(given).rglob("*") if path.is_file() and not _is_hidden(path, Path(given)))
        files = [str(path) for path in inside if path.name.lower().endswith(endings)]
        if not files:
            other = f"the folder {given!r} with {len(inside)} other files" if inside else f"the empty folder {given!r}"
            raise InputError("INPUT", other, f"a folder with files whose names end with {' '.join(endings)}")
        yield from files
    elif _is(given, Path.exists):
        yield given
    elif glob.has_magic(given) and (matched := _matching(given)):
        for name in matched:
            yield from _names(name, spec)
    elif _looks_like_a_file(given):
        raise InputError("INPUT", f"{given!r}, which does not exist", _allowed(spec), _FIX if _takes_text(spec) else "")
    else:
        yield given


def _matching(pattern: str) -> list[str]:
    """Return the files and folders that match a glob; none for a text with such characters."""
    try:
        return sorted(glob.glob(pattern, recursive=True))
    except (OSError, ValueError):
        return []


def _looks_like_a_file(given: str) -> bool:
    """Check whether a text is one word that ends like the name of a data file."""
    every = tuple(ending for name in _ANY for ending in endings_of(name))
    return not any(map(str.isspace, given)) and given.lower().endswith(every) and given.lower() not in every


def _is(given: str, what: Callable[[Path], bool]) -> bool:
    """Check what is at a path; a text is none."""
    try:
        return given != "" and what(Path(given))
    except (OSError, ValueError):  # too long, or with a NUL
        return False


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _endings(spec: DataSpec | None) -> tuple[str, ...]:
    if spec and spec.reader:
        return ("",)
    formats = [*_ANY] if spec is None else [*_FORMATS[spec.kind]]
    if spec and spec.format != "auto":
        formats.append(spec.format)
    return tuple(dict.fromkeys(ending for name in formats for ending in endings_of(name)))


def _takes_text(spec: DataSpec | None) -> bool:
    return spec is None or spec.kind == "tokens"


def _allowed(spec: DataSpec | None) -> str:
    return f"{'a text, ' if _takes_text(spec) else ''}an existing file, a folder, or a glob"
