"""The files of a source that are used: one format, and a reason for every other file."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.raw.finding import Found
from drivetrain_pipelines.raw.formats import (
    ANY,
    AUTO,
    FORMATS,
    compression_of,
    endings_of,
    format_of_name,
    how_to_choose,
    known_endings,
    matches,
)
from drivetrain_pipelines.raw.layouts import Layout, layout_of
from drivetrain_pipelines.raw.splits import Splits, evaluation_splits, splits_by_name, training_split

LABEL_LIST = "labels.csv"  # names of files and their labels, instead of a folder per class
METADATA_LISTS = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # the same, as Hugging Face writes it
_ACCOMPANYING = re.compile(
    r"(readme|licen[cs]e|copying|notice|changelog|citation|authors|contributing|code_of_conduct)([-._].*)?"
    r"|(sha\d+sums?|md5sums?|checksums?|requirements)\.txt"
    r"|(dataset_infos?|dataset_dict|state|config|dataset-metadata|croissant)\.json",
    re.IGNORECASE,
)
_ARCHIVE = re.compile(r"\.(zip|7z|rar|tgz|tbz2?|txz|tar\.\w+)$", re.IGNORECASE)


@dataclass(frozen=True)
class Selection:
    """The files of a source that are used, by relative names.

    Attributes:
        format: never ``auto``.
        files: the files of all splits, in order.
        splits: the same files by split; empty without splits.
        lists: files that hold the labels of others.
        ignored: what every other file is, by its name.
    """

    format: str
    files: list[str]
    splits: Splits = field(default_factory=dict)
    lists: list[str] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)


def select(found: Found, format_: str, source: str, key: str, read: Callable[[str], bytes]) -> Selection:
    """Return the files that are used.

    Args:
        read: returns the content of a file by its relative name.

    Raises:
        InputError: no file of a known format, or the files can be read in several ways.
    """
    names = list(found.entries)
    hidden = dict.fromkeys(found.hidden, "hidden")
    if found.how == "file":
        return Selection(_format_of_one(names[0], format_, source, key), names)
    if format_ == ANY:
        if not names:
            raise InputError(key, repr(source), "a folder with files", "All files in it are hidden.")
        return Selection(ANY, names, ignored=hidden)
    layout = layout_of(names, format_, read, key)
    candidates = layout.files if layout else names
    chosen = (layout and layout.format) or _one_format(candidates, format_, found.how, source, key)
    files = _files_of(candidates, chosen, found.how, layout)
    if not files:
        raise _nothing(found, format_, source, key)
    lists = _lists(names, chosen)
    files = [name for name in files if name not in lists]
    splits = layout.splits if layout else {}
    if not splits:
        splits = splits_by_name(files, chosen, found.how, key, source)
    used = {*files, *lists}
    ignored = hidden | {name: _kind(name, chosen) for name in names if name not in used}
    return Selection(chosen, files, _complete(splits, files), lists, ignored)


def split_for(splits: Splits, source: str, key: str, *, evaluates: bool) -> str:
    """Return the name of the split that a source with splits stands for.

    Raises:
        InputError: no split trains, or none or several evaluate.
    """
    chosen = [name] if (name := training_split(splits)) and not evaluates else []
    if evaluates:
        chosen = list(splits) if len(splits) == 1 else evaluation_splits(splits)
    if len(chosen) == 1:
        return chosen[0]
    known = ", ".join(f"{name} ({len(files)} files, such as {files[0]})" for name, files in splits.items())
    purpose = "evaluates" if evaluates else "trains"
    given = f"{source!r} with the splits {known}"
    raise InputError(key, given, f"files of which one split {purpose}", f"Name the files that are to {purpose[:-1]}.")


def _format_of_one(name: str, format_: str, source: str, key: str) -> str:
    """Return the format of a single file, which was named on purpose."""
    chosen = (format_of_name(name) if format_ == AUTO else format_) or ""
    compressed = chosen in FORMATS and compression_of(name) and not FORMATS[chosen].compressible
    if not chosen or compressed:
        allowed = f"a file whose name ends with {known_endings()}"
        compression = compression_of(name)
        if _ARCHIVE.search(name):
            fix = "Unpack the archive, and name the folder."
        elif compression and (chosen or format_of_name(name[: name.rindex(".")])):
            fix = "Decompress it: only text, jsonl, json, csv and webdataset are read compressed."
        else:
            fix = how_to_choose()
        raise InputError(key, repr(source), allowed, fix)
    return chosen


def _one_format(names: list[str], format_: str, how: str, source: str, key: str) -> str:
    """Return the only format of some files."""
    if format_ != AUTO:
        return format_
    by_kind: dict[str, list[str]] = {}
    for name in names:
        if kind := format_of_name(name):
            by_kind.setdefault(kind, []).append(name)
    data = {kind: left for kind, each in by_kind.items() if (left := [n for n in each if not _accompanies(n)])}
    if not data and how == "pattern":
        data = by_kind
    media = [kind for kind in data if FORMATS[kind].file_per_record]
    if len(media) == 1:
        lists = _lists(names, media[0])
        data = {kind: left for kind, each in data.items() if (left := [name for name in each if name not in lists])}
    unreadable = [name for name in names if _only_compressed(name) and not _accompanies(name)]
    if len(data) == 1 and not unreadable:
        return next(iter(data))
    if not data and not unreadable:
        raise _nothing_known(names, source, key)
    described = [f"{len(each)} of the format {kind} ({each[0]})" for kind, each in data.items()]
    described += [f"{len(unreadable)} compressed ({unreadable[0]})"] if unreadable else []
    if len(described) == 1:
        fix = "Decompress them: only text, jsonl, json, csv and webdataset are read compressed."
    else:
        fix = f"Set data.format to one of them, or name the files with a glob, such as {source.rstrip('/')}/**/*" + (
            FORMATS[next(iter(data))].endings[0] if how == "folder" else ""
        )
    raise InputError(key, f"{source!r} with files {' and '.join(described)}", "files of one format", fix)


def _files_of(names: list[str], format_: str, how: str, layout: Layout | None) -> list[str]:
    if layout and layout.format:
        return names
    named = [name for name in names if matches(name, format_)]
    if layout and layout.splits:
        return named or names
    data = [name for name in named if not _accompanies(name)]
    if how == "pattern":
        return data or named or names  # the pattern and the format leave no doubt
    return data


def _complete(splits: Splits, files: list[str]) -> Splits:
    """Leave out of the splits what is not used, such as a list of labels."""
    used = set(files)
    left = {split: [name for name in names if name in used] for split, names in splits.items()}
    return {split: names for split, names in left.items() if names}


def _lists(names: list[str], format_: str) -> list[str]:
    """Return the files that hold labels of others, where each file is one record."""
    if format_ not in FORMATS or not FORMATS[format_].file_per_record:
        return []
    return [name for name in names if name.rsplit("/", 1)[-1] in (LABEL_LIST, *METADATA_LISTS)]


def _accompanies(name: str) -> bool:
    """Check whether a file describes data, rather than being data."""
    return bool(_ACCOMPANYING.fullmatch(name.rsplit("/", 1)[-1]))


def _only_compressed(name: str) -> bool:
    """Check whether a file would have a format if it were not compressed."""
    return bool(compression_of(name)) and not format_of_name(name) and bool(format_of_name(name[: name.rindex(".")]))


def _kind(name: str, chosen: str) -> str:
    base = name.rsplit("/", 1)[-1]
    if _accompanies(name):
        return "descriptions"
    if matches(name, chosen):
        return f"other {chosen}"
    ending = "." + base.rsplit(".", 1)[1].lower() if "." in base else ""
    return ending or "without an ending"


def _nothing(found: Found, format_: str, source: str, key: str) -> InputError:
    if format_ == AUTO:
        return _nothing_known(list(found.entries), source, key)
    allowed = f"a {found.how} with files of the format {format_} ({' '.join(endings_of(format_)[:8])})"
    return InputError(key, repr(source), allowed, _what_is_there(list(found.entries)))


def _nothing_known(names: list[str], source: str, key: str) -> InputError:
    archives = [name for name in names if _ARCHIVE.search(name)]
    if archives:
        return InputError(key, f"{source!r} with the archive {archives[0]}", "files", "Unpack the archive.")
    return InputError(key, repr(source), "files of one known format", f"{_what_is_there(names)} {how_to_choose()}")


def _what_is_there(names: list[str]) -> str:
    if not names:
        return "All files in it are hidden."
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"It has {names[0]}{more}."
