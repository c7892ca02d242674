"""Splits that the names of files and folders show, as the library `datasets` of Hugging Face reads them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.raw.formats import FORMATS

TRAIN, VALIDATION, TEST = "train", "validation", "test"
_WORDS = {
    TRAIN: ("train", "training"),
    VALIDATION: ("validation", "valid", "val", "dev"),
    TEST: ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF_WORD = {word: split for split, words in _WORDS.items() for word in words}
_BETWEEN_WORDS = re.compile(r"[-._ 0-9]+")
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\.[^/]*")  # as Hugging Face names the shards of a split

Splits = dict[str, list[str]]


def split_of_word(name: str, *, at_ends: bool = False) -> str:
    """Return the split that a word in a name shows; empty for none, or for several.

    Args:
        at_ends: look only at the first and the last word.
    """
    words = [word for word in _BETWEEN_WORDS.split(name.lower()) if word]
    found = {_SPLIT_OF_WORD[word] for word in (words[:1] + words[-1:] if at_ends else words) if word in _SPLIT_OF_WORD}
    return found.pop() if len(found) == 1 else ""


def split_folder(name: str) -> str:
    """Return the first folder in a relative name that shows a split; empty for none."""
    return next((folder for folder in name.split("/")[:-1] if split_of_word(folder)), "")


def splits_by_name(names: Iterable[str], format_: str, how: str, key: str, source: str) -> Splits:
    """Return the files of each split, if the names of folders or files show splits; else nothing.

    Args:
        names: relative names of the files that are used.
        how: see `drivetrain_pipelines.raw.finding.Found`. A pattern that matches one split names its files.

    Raises:
        InputError: some names show splits and others do not, so that test data could be mixed with training data.
    """
    names = list(names)
    if shards := _by_shards(names):
        return shards
    by_folder = _group(names, lambda name: split_of_word(split_folder(name)))
    by_file = _group(names, lambda name: _split_of_file(name, at_ends=False))
    chosen = by_folder if by_folder.keys() - {""} else by_file
    if chosen is by_file and TRAIN not in by_file:  # a word inside a title is no evidence
        chosen = _group(names, lambda name: _split_of_file(name, at_ends=True))
    shown = chosen.keys() - {""}
    alone = chosen is not by_folder and format_ in FORMATS and FORMATS[format_].file_per_record
    if not shown or (alone and (len(shown) == 1 or "" in chosen)):
        return {}
    if how == "pattern" and len(chosen) == 1:
        return {}
    if "" in chosen:
        _refuse_mixture(chosen, how, key, source)
    return {split: chosen[split] for split in (TRAIN, VALIDATION, TEST) if split in chosen}


def training_split(splits: Mapping[str, list[str]]) -> str:
    """Return the name of the split that trains; empty for none."""
    if TRAIN in splits:
        return TRAIN
    found = [name for name in splits if split_of_word(name) == TRAIN]
    return found[0] if len(found) == 1 else ""


def evaluation_splits(splits: Iterable[str]) -> list[str]:
    """Return the names of the splits that may evaluate: of several, the data can be read in several ways."""
    splits = list(splits)
    for kind in (VALIDATION, TEST):
        if kind in splits:
            return [kind]
        if found := [name for name in splits if split_of_word(name) == kind]:
            return found
    return []


def _split_of_file(name: str, *, at_ends: bool) -> str:
    base = name.rsplit("/", 1)[-1]
    shard = _SHARD.fullmatch(base)
    return split_of_word(shard[1] if shard else base.split(".", 1)[0] if at_ends else base, at_ends=at_ends)


def _by_shards(names: list[str]) -> Splits:
    """Return the splits of a repository whose files are all shards, one of them of the split ``train``."""
    prefixes = {name: found[1] for name in names if (found := _SHARD.fullmatch(name.rsplit("/", 1)[-1]))}
    if len(prefixes) < len(names) or TRAIN not in prefixes.values():
        return {}
    return _group(names, lambda name: prefixes[name])


def _group(names: list[str], split_of: Callable[[str], str]) -> Splits:
    found: Splits = {}
    for name in names:
        found.setdefault(split_of(name), []).append(name)
    return found


def _refuse_mixture(chosen: Splits, how: str, key: str, source: str) -> None:
    shown = ", ".join(f"{split} ({files[0]})" for split, files in chosen.items() if split)
    given = f"a {how} in which some files belong to the split {shown} and others to none ({chosen[''][0]}): {source!r}"
    fix = "Name the training files with a glob or as a list of sources, and the evaluation files in data.eval_source."
    raise InputError(key, given, "files that are all in splits, or none", fix)
