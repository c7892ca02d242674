"""The sources of a dataset: their files, the splits of these, and the version that depends on them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.prepare.parts import Task
from drivetrain_pipelines.prepare.splitting import AUTO
from drivetrain_pipelines.raw.chunks import Chunk, chunk_files, chunk_labelled_files
from drivetrain_pipelines.raw.formats import FORMATS
from drivetrain_pipelines.raw.listing import Listing, list_source
from drivetrain_pipelines.raw.sources import SourceFile
from drivetrain_pipelines.spec import DataSpec
from drivetrain_pipelines.storage.checksums import tree_digest
from drivetrain_pipelines.storage.json_files import JsonObject
from drivetrain_pipelines.user_code import files_of

_FORMAT = 3  # part of every version: increase it when the same settings produce other bytes
_NOT_CONTENT = {
    "name",
    "source",
    "eval_source",
    "chunk_bytes",
    "location",
    "storage",
    "cache_bytes",
    "files",
    "lanes",
    "online",
    "shuffle_window",
    "tokenizer",
}


@dataclass(frozen=True)
class Origin:
    """Files of one source that get the same split.

    Attributes:
        key: key of the job file that names the source.
        split: split of the samples, or `drivetrain_pipelines.prepare.splitting.AUTO`.
    """

    key: str
    listing: Listing
    files: tuple[SourceFile, ...]
    split: str
    source_index: int

    @property
    def file_per_record(self) -> bool:
        """Whether each file is one record."""
        return self.listing.format in FORMATS and FORMATS[self.listing.format].file_per_record


@dataclass(frozen=True)
class Origins:
    """All sources of a dataset.

    Attributes:
        notes: sentences about files that are ignored.
        ignored: number of files that are ignored.
    """

    every: tuple[Origin, ...]
    notes: tuple[str, ...]
    ignored: int

    @property
    def files(self) -> int:
        """Number of files that are used."""
        return sum(len(origin.files) for origin in self.every)


def find_origins(spec: DataSpec, downloads: Path) -> Origins:
    """List the files of all sources.

    A source whose layout has a split for evaluation evaluates with it, unless the job names an evaluation source.

    Raises:
        InputError, PrepareError: as `drivetrain_pipelines.raw.listing.list_source`; or a key of the job needs
            documents, and the source is running text.
    """
    several = not isinstance(spec.source, str)
    named = [
        (entry.source, f"data.source.{number}.source" if several else "data.source", number)
        for number, entry in enumerate(spec.mixture)
    ]
    every, notes, ignored = list[Origin](), list[str](), 0
    if spec.eval_source:
        named.append((spec.eval_source, "data.eval_source", 0))
    for source, key, source_index in named:
        evaluates = key == "data.eval_source"
        labels = spec.label_column if spec.has_label else None
        listing = list_source(
            source, spec.file_format, spec.storage, downloads, key, evaluates=evaluates, label_column=labels
        )
        _check(spec, listing, key)
        held_out = "" if spec.eval_source else listing.evaluation_split
        split = "eval" if evaluates else "train" if spec.eval_source or held_out else AUTO
        every.append(Origin(key, listing, listing.files, split, source_index))
        if held_out:
            every.append(Origin(key, listing, listing.splits[held_out], "eval", source_index))
        used = {held_out, next((name for name, files in listing.splits.items() if files == listing.files), "")}
        left = listing.ignored.count + sum(len(files) for name, files in listing.splits.items() if name not in used)
        if left:
            notes.append(f"{key}: {listing.summary(evaluates=bool(held_out))}")
        ignored += left
    return Origins(tuple(every), tuple(notes), ignored)


def version_of(made_from: JsonObject) -> str:
    """Return the version of a dataset that is made from this."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]


def made_from(spec: DataSpec, origins: Origins, code_folder: Path) -> JsonObject:
    """Return everything that the bytes of the dataset depend on, with file contents instead of file names."""
    settings = spec.model_dump(mode="json", exclude=_NOT_CONTENT)
    if spec.kind == "tokens":
        tokenizer = spec.tokenizer.model_dump(mode="json")
        if file := spec.tokenizer.file:
            tokenizer["file"] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        settings["tokenizer"] = tokenizer
    code = {}
    if spec.transform or spec.reader:
        code = {
            p.relative_to(code_folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in files_of(code_folder)
        }
    files = {name: tree_digest(Path(path)) for name, path in spec.files.items()}
    sources = [_described(origin) for origin in origins.every]
    return {"format": _FORMAT, "settings": settings, "code": code, "files": files, "sources": sources}


def tasks_of(spec: DataSpec, origins: Sequence[Origin]) -> list[Task]:
    """Return the chunks of all sources, with consecutive numbers."""
    chunks = ((origin, chunk) for origin in origins for chunk in _chunks(spec, origin))
    return [Task(number, origin.split, chunk, origin.key) for number, (origin, chunk) in enumerate(chunks)]


def _chunks(spec: DataSpec, origin: Origin) -> list[Chunk]:
    files, format_, index = list(origin.files), origin.listing.format, origin.source_index
    if origin.file_per_record:
        return chunk_labelled_files(files, dict(origin.listing.labels), format_, spec.chunk_bytes, index)
    return chunk_files(files, format_, spec.chunk_bytes, spec.storage, index)


def _described(origin: Origin) -> list[object]:
    described: list[object] = [origin.listing.format, origin.split, [file.digest for file in origin.files]]
    if origin.file_per_record:  # a file that was moved to another class is another sample
        described.append([origin.listing.labels.get(file.url) for file in origin.files])
    return described


def _check(spec: DataSpec, listing: Listing, key: str) -> None:
    """Check that running text, which has no documents, is used without them. Raises `InputError`."""
    if listing.format != "text":
        return
    fix = f"The files of {key} are running text, without documents. Set data.format to documents (one per file)."
    if spec.split_by:
        raise InputError("data.split_by", repr(spec.split_by), "nothing, for running text", fix)
    if spec.packing != "concatenate":
        raise InputError("data.packing", spec.packing, "concatenate, for running text", fix)
