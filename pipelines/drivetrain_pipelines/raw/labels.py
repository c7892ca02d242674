"""Labels of files that are one record each: from a list next to them, or a folder per class."""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections.abc import Callable, Mapping
from typing import Any

from drivetrain_pipelines.errors import InputError, PrepareError
from drivetrain_pipelines.raw.selection import LABEL_LIST, Selection
from drivetrain_pipelines.raw.splits import split_folder

_Rows = list[dict[str, Any]]


def labels_of(
    selection: Selection, root: str, source: str, key: str, label_column: str, read: Callable[[str], bytes]
) -> dict[str, str]:
    """Return the label of each file that has one, by relative name; empty where nothing names labels.

    Args:
        selection: the files.
        root: path or URL of the folder; it names the class of files that are directly in it.
        label_column: column of the labels in lists of Hugging Face (``metadata``).
        read: returns the content of a file by its relative name.

    Raises:
        InputError: the folders name classes in two ways.
        PrepareError: a list without the needed columns, or one that names a missing file, or one file twice.
    """
    if not selection.lists:
        return _from_folders(selection.files, root, source, key)
    labels: dict[str, str] = {}
    named, files = False, set(selection.files)
    for name in selection.lists:
        file_column, column = ("file", "label") if name.endswith(LABEL_LIST) else ("file_name", label_column)
        rows = _rows(name, read(name))
        columns = list(dict.fromkeys(column for row in rows for column in row))
        if not {file_column, *([column] if name.endswith(LABEL_LIST) else [])} <= set(columns):
            known, needed = ", ".join(map(str, columns)), f"{file_column} and {column}"
            raise PrepareError(f"{name} of {source} has the columns {known}; {needed} are needed")
        named = named or column in columns
        folder = posixpath.dirname(name)
        found: dict[str, str] = {}
        for number, row in enumerate(rows):
            if not isinstance(row.get(file_column), str):
                raise PrepareError(f"{name} of {source} does not name a file in row {number + 1}")
            file = posixpath.normpath(posixpath.join(folder, row[file_column]))
            label = _text(row.get(column), f"{name}: {row[file_column]}")
            if (found | labels).get(file, label) != label:
                raise PrepareError(
                    f"{name} of {source} gives {file} the labels {(found | labels)[file]!r} and {label!r}"
                )
            found[file] = label
        labels |= found
        if missing := sorted(found.keys() - files):
            raise PrepareError(f"{name} of {source} names {len(missing)} missing files, the first is {missing[0]}")
    return labels if named else {}


def _from_folders(files: list[str], root: str, source: str, key: str) -> dict[str, str]:
    """Return the class of each file by its folder, if torchvision's and Hugging Face's reading are the same.

    torchvision takes the folder directly below the source, Hugging Face the one that directly holds the file.
    """
    parents = {name: _folders(name) for name in files}
    distinct = set(map(tuple, parents.values()))
    shared = len(posixpath.commonprefix([list(each) for each in distinct])) if len(distinct) > 1 else 0
    for name, folders in parents.items():
        below = folders[shared:]
        if len(distinct) > 1 and len(below) != 1:
            first = below[0] if below else "none"
            given = f"{source!r}, where the class of {name} may be {folders[-1] if folders else 'none'} or {first}"
            allowed = "one folder for each class, with the files directly in it"
            raise InputError(key, given, allowed, f"Write {LABEL_LIST} (file,label), or name a folder of classes.")
    of_root = root.rstrip("/").rsplit("/", 1)[-1]
    return {name: folders[-1] if folders else of_root for name, folders in parents.items()}


def _folders(name: str) -> list[str]:
    """Return the folders of a relative name without the one that names a split."""
    folders = name.split("/")[:-1]
    if split := split_folder(name):
        folders.remove(split)
    return folders


def _rows(name: str, content: bytes) -> _Rows:
    if name.endswith(".parquet"):
        from pyarrow import parquet  # jobs are checked without it

        rows: _Rows = parquet.read_table(io.BytesIO(content)).to_pylist()
        return rows
    try:
        text = content.decode("utf-8-sig")
        if name.endswith(".jsonl"):
            return [_object(json.loads(line)) for line in text.split("\n") if line.strip()]
        return [_whole(row) for row in csv.DictReader(io.StringIO(text, newline=""), strict=True)]
    except (ValueError, csv.Error) as error:
        raise PrepareError(f"{name} cannot be read: {error}") from error


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("a line is not an object")
    return value


def _whole(row: Mapping[str | None, Any]) -> dict[str, Any]:
    if None in row or None in row.values():
        raise ValueError(f"the row {list(row.values())} does not have one value for each column")
    return {str(name): value for name, value in row.items()}


def _text(value: Any, location: str) -> str:
    """Return a label as text; a missing one is empty, and becomes a bad record."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, int)) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    raise PrepareError(f"{location} has the label {value!r}; text or a whole number is needed")
