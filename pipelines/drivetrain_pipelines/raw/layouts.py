"""Layouts of well-known tools, which say themselves which files are the data and to which split they belong."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import yaml
from fsspec.utils import glob_translate

from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.raw.formats import AUTO
from drivetrain_pipelines.raw.splits import TRAIN, Splits

HUGGINGFACE, ARROW = "huggingface", "arrow"
_STATE, _INFO, _SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
_CARD = "README.md"
_FRONT_MATTER = re.compile(r"\A\ufeff?---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)

Read = Callable[[str], bytes]  # the content of a file by its relative name


@dataclass(frozen=True)
class Layout:
    """What a layout says.

    Attributes:
        format: the format, if the layout says it; else empty.
        files: the data files in order.
        splits: the same files by split; empty without splits.
    """

    format: str
    files: list[str]
    splits: Splits


def layout_of(names: list[str], format_: str, read: Read, key: str) -> Layout | None:
    """Return the layout of a folder, or None if it has none of the known ones.

    Args:
        names: relative names of its files.
        format_: the format of the job. A saved dataset of Hugging Face holds Arrow files.

    Raises:
        InputError: the description of the layout cannot be read, or names missing files.
    """
    if format_ in (AUTO, HUGGINGFACE, ARROW) and (saved := _saved(names, read, key)):
        return replace(saved, format=ARROW) if format_ == ARROW else saved
    return _repository(names, read, key) if _CARD in names else None


def _saved(names: list[str], read: Read, key: str) -> Layout | None:
    """Read what `Dataset.save_to_disk`, `DatasetDict.save_to_disk` or the cache of `load_dataset` wrote."""
    states: dict[str, list[str]] = {}
    for name in names:
        if name.rsplit("/", 1)[-1] == _STATE and "_data_files" in (state := _json(name, read, key)):
            folder = name.removesuffix(_STATE)
            states[folder] = _of_state(folder, state, names, key)
    if _SPLITS in names:
        splits = _json(_SPLITS, read, key).get("splits")
        if not isinstance(splits, list) or not all(f"{split}/" in states for split in splits):
            raise InputError(key, f"{_SPLITS} with the splits {splits}", f"a folder with {_STATE} for each split")
        by_split = {str(split): states[f"{split}/"] for split in splits}
        return Layout(HUGGINGFACE, [name for files in by_split.values() for name in files], by_split)
    if states:
        return Layout(HUGGINGFACE, [name for files in states.values() for name in files], {})
    return _cached(names, read, key)


def _of_state(folder: str, state: dict[str, Any], names: list[str], key: str) -> list[str]:
    if state.get("_indices_data_files"):
        fix = "Call flatten_indices() and save_to_disk() again."
        raise InputError(key, f"{folder}{_STATE} with a selection of rows", "a dataset with its rows in order", fix)
    listed = state["_data_files"]
    files = [str(each.get("filename")) for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    missing = [name for name in files if f"{folder}{name}" not in names]
    if missing or not files:
        problem = f"which names the missing file {missing[0]}" if missing else "which names no file"
        raise InputError(key, f"{folder}{_STATE}, {problem}", "a complete dataset of save_to_disk", "Save it again.")
    return [f"{folder}{name}" for name in files]


def _cached(names: list[str], read: Read, key: str) -> Layout | None:
    """Read the cache of `load_dataset`: ``NAME-SPLIT.arrow``, or ``NAME-SPLIT-00000-of-00002.arrow``."""
    infos = [name for name in names if name.rsplit("/", 1)[-1] == _INFO]
    arrow = [name for name in names if name.endswith(".arrow") and not name.rsplit("/", 1)[-1].startswith("cache-")]
    if not infos or not arrow:
        return None
    if len(infos) > 1:
        given = f"a folder with the datasets {infos[0].removesuffix(_INFO)} and {infos[1].removesuffix(_INFO)}"
        raise InputError(key, given, "one dataset of Hugging Face", "Name the folder of one.")
    by_split: Splits = {}
    for split in _json(infos[0], read, key).get("splits") or {}:
        ending = re.compile(rf"(.*[-/])?{re.escape(str(split))}(-\d{{5}}-of-\d{{5}})?\.arrow")
        if files := [name for name in arrow if ending.fullmatch(name)]:
            by_split[str(split)] = files
    return Layout(HUGGINGFACE, [name for files in by_split.values() for name in files] or arrow, by_split)


def _repository(names: list[str], read: Read, key: str) -> Layout | None:
    """Read the files of each split from the card of a dataset repository."""
    found = _FRONT_MATTER.match(read(_CARD).decode("utf-8", errors="replace").replace("\r\n", "\n"))
    try:
        card = yaml.safe_load(found[1]) if found else None
    except (yaml.YAMLError, ValueError, RecursionError):
        card = None  # a file that only looks like a card
    configs = card.get("configs") if isinstance(card, dict) else None
    if not isinstance(configs, list) or not all(isinstance(each, dict) for each in configs) or not configs:
        return None
    config = _one_config(configs, key)
    folder = str(config.get("data_dir") or "").strip("/")
    if config.get("data_files") is None:
        inside = [name for name in names if name.startswith(f"{folder}/")] if folder else names
        return Layout("", inside, {}) if folder else None
    splits = {
        split: _matching([f"{folder}/{path}".lstrip("/") for path in paths], names, key)
        for split, paths in _paths_by_split(config["data_files"]).items()
    }
    counted = Counter(name for files in splits.values() for name in files)
    if shared := [name for name, count in counted.items() if count > 1]:
        raise InputError(key, f"{_CARD}, which puts {shared[0]} into several splits", "one split for each file")
    return Layout("", [name for files in splits.values() for name in files], splits)


def _one_config(configs: list[dict[str, Any]], key: str) -> dict[str, Any]:
    chosen = [each for each in configs if each.get("default") is True or each.get("config_name") == "default"]
    if len(configs) == 1 or len(chosen) == 1:
        return chosen[0] if len(chosen) == 1 else configs[0]
    known = ", ".join(str(each.get("config_name")) for each in configs)
    fix = "Name the files of one with a glob in the source."
    raise InputError(key, f"a repository with the configurations {known}", "one configuration, or a default one", fix)


def _paths_by_split(data_files: Any) -> dict[str, list[str]]:
    if isinstance(data_files, str):
        return {TRAIN: [data_files]}
    if isinstance(data_files, dict):
        pairs = list(data_files.items())
    else:
        pairs = [(e.get("split", TRAIN), e.get("path")) if isinstance(e, dict) else (TRAIN, e) for e in data_files]
    found: dict[str, list[str]] = {}
    for split, paths in pairs:
        found.setdefault(str(split), []).extend(map(str, paths if isinstance(paths, list) else [paths]))
    return found


def _matching(patterns: list[str], names: list[str], key: str) -> list[str]:
    found: dict[str, None] = {}
    for pattern in patterns:
        name = str(PurePosixPath(pattern))
        expression = re.compile(glob_translate(name))
        matched = [name] if name in names else [each for each in names if expression.fullmatch(each)]
        if not matched:
            raise InputError(key, f"{_CARD}, which names {pattern}", "a repository with all its files", "Download it.")
        found |= dict.fromkeys(matched)
    return list(found)


def _json(name: str, read: Read, key: str) -> dict[str, Any]:
    try:
        content = json.loads(read(name))
    except ValueError as error:
        given = f"{name}, which is not JSON ({error})"
        raise InputError(key, given, "a file of Hugging Face", "Save it again.") from error
    if not isinstance(content, dict):
        raise InputError(key, f"{name}, which is not a JSON object", "a file of Hugging Face", "Save it again.")
    return content
