"""Chunks of work and the records in them. A chunk depends only on the files and the settings."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv, ipc, parquet

from drivetrain_pipelines.errors import PrepareError
from drivetrain_pipelines.raw.sources import SourceFile, open_file
from drivetrain_pipelines.spec import StorageSpec
from drivetrain_pipelines.storage.arrow_types import array_of

Row = dict[str, Any]  # one record: its fields by name

_LINE_FORMATS = ("text", "jsonl")  # can be split at any line
FILE_PER_RECORD = ("images", "audio", "documents")  # formats with one record per file


@dataclass(frozen=True)
class Chunk:
    """A piece of raw data that becomes one shard per split.

    Attributes:
        urls: one file; or many, with one record each.
        start, stop: bytes in which its lines begin, or row groups, or record batches; if equal, the whole file.
        source_index: index of the source.
        labels: class of each file, where each file is one record.
    """

    format: str
    urls: tuple[str, ...]
    start: int = 0
    stop: int = 0
    source_index: int = 0
    labels: tuple[int, ...] = ()


@dataclass
class Records:
    """The records of a chunk.

    Attributes:
        table: columns of the format: ``text``; or ``file`` and ``bytes``, with ``label`` where it is known.
        skipped: locations of bad records, each with its error.
    """

    table: pa.Table
    skipped: list[str] = field(default_factory=list)


def chunk_files(
    files: list[SourceFile], format_: str, chunk_bytes: int, storage: StorageSpec, source_index: int = 0
) -> list[Chunk]:
    """Divide files into chunks of about ``chunk_bytes``, in order. For one record per file: `chunk_labelled_files`."""
    chunks: list[Chunk] = []
    for file in files:
        if file.url.endswith("/dataset_info.json"):
            continue  # metadata of a Hugging Face folder
        pieces = max(1, -(-file.size // chunk_bytes))
        if format_ in _LINE_FORMATS and not file.url.endswith(".gz"):
            bounds = [(start, min(start + chunk_bytes, file.size)) for start in range(0, file.size, chunk_bytes)]
        elif format_ in ("parquet", "arrow") and pieces > 1:
            groups = _count_parts(file.url, format_, storage)
            pieces = min(pieces, groups)
            bounds = [(groups * i // pieces, groups * (i + 1) // pieces) for i in range(pieces)]
        else:
            bounds = [(0, 0)]
        chunks += [Chunk(format_, (file.url,), start, stop, source_index) for start, stop in bounds]
    return chunks


def chunk_labelled_files(
    files: list[SourceFile], labels: dict[str, int], format_: str, chunk_bytes: int, source_index: int = 0
) -> list[Chunk]:
    """Group whole files into chunks of about ``chunk_bytes``; files without a label are left out."""
    chunks: list[Chunk] = []
    urls: list[str] = []
    size = 0
    for file in [*(file for file in files if file.url in labels), None]:
        if urls and (file is None or size + file.size > chunk_bytes):
            chunks.append(
                Chunk(format_, tuple(urls), source_index=source_index, labels=tuple(labels[url] for url in urls))
            )
            urls, size = [], 0
        if file:
            urls.append(file.url)
            size += file.size
    return chunks


def read(chunk: Chunk, storage: StorageSpec, skip_bad: bool) -> Records:
    """Read the records of a chunk.

    Raises:
        PrepareError: a bad record, unless ``skip_bad``; names file and location.
    """
    return _READERS[chunk.format](chunk, storage, _Errors(skip_bad))


class _Errors:
    """Raises or collects the errors of bad records."""

    def __init__(self, skip: bool) -> None:
        self._skip = skip
        self.skipped: list[str] = []

    def report(self, location: str, problem: object) -> None:
        if not self._skip:
            raise PrepareError(f"{location}: {problem}", "Set data.on_error to skip to leave such records out")
        self.skipped.append(f"{location}: {str(problem)[:200]}")


def table_of(rows: list[Row]) -> pa.Table:
    """Convert rows to a table with the columns of all of them; missing values are null. Equal shapes stay arrays."""
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: _column_of([row.get(name) for row in rows]) for name in names})


def _column_of(values: list[Any]) -> Any:
    shapes = {value.shape if isinstance(value, np.ndarray) else None for value in values}
    if len(shapes) > 1 or None in shapes:
        return values
    array = np.stack(values)
    return array_of(array.astype(np.uint8) if array.dtype == np.bool_ else array)  # a mask becomes numbers


def _lines(chunk: Chunk, storage: StorageSpec) -> bytes:
    """Read from the first line that begins in the chunk to the end of the last."""
    with open_file(chunk.urls[0], storage, "infer") as file:
        if chunk.start == chunk.stop:
            return bytes(file.read())
        if chunk.start:
            file.seek(chunk.start - 1)
            file.readline()  # a line that began before this chunk belongs to the previous one
        start = file.tell()
        if start >= chunk.stop:
            return b""
        text = bytes(file.read(chunk.stop - start))
        return text if text.endswith(b"\n") else text + bytes(file.readline())


def _read_text(chunk: Chunk, storage: StorageSpec, _: _Errors) -> Records:
    return Records(pa.table({"text": [_lines(chunk, storage).decode("utf-8", errors="replace")]}))


def _read_jsonl(chunk: Chunk, storage: StorageSpec, errors: _Errors) -> Records:
    rows = []
    for number, line in enumerate(_lines(chunk, storage).split(b"\n")):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("a line is not an object")
            rows.append(row)
        except ValueError as error:
            errors.report(f"{chunk.urls[0]}, line {number + 1} from byte {chunk.start}", error)
    return Records(table_of(rows), errors.skipped)


def _read_csv(chunk: Chunk, storage: StorageSpec, errors: _Errors) -> Records:
    invalid: list[Any] = []

    def skip(row: Any) -> str:  # Arrow would lose an exception raised here
        invalid.append(row)
        return "skip"

    delimiter = "\t" if ".tsv" in chunk.urls[0] else ","
    parsing = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skip)
    with open_file(chunk.urls[0], storage, "infer") as file:
        table = csv.read_csv(file, csv.ReadOptions(use_threads=False), parsing)
    for row in invalid:
        location = f"{chunk.urls[0]}, row {row.number}"
        errors.report(location, f"{row.actual_columns} columns instead of {row.expected_columns}")
    return Records(table, errors.skipped)


def _read_parquet(chunk: Chunk, storage: StorageSpec, _: _Errors) -> Records:
    with open_file(chunk.urls[0], storage) as file:
        opened = parquet.ParquetFile(file)
        groups = range(chunk.start, chunk.stop or opened.num_row_groups)
        return Records(opened.read_row_groups(list(groups), use_threads=False))


def _read_arrow(chunk: Chunk, storage: StorageSpec, _: _Errors) -> Records:
    with open_file(chunk.urls[0], storage) as file:
        content = pa.BufferReader(file.read())
    try:
        opened = ipc.open_file(content)
    except pa.ArrowInvalid:  # Hugging Face writes the stream format
        return Records(ipc.open_stream(content).read_all())
    batches = range(chunk.start, chunk.stop or opened.num_record_batches)
    return Records(pa.Table.from_batches([opened.get_batch(number) for number in batches], opened.schema))


def _read_files(chunk: Chunk, storage: StorageSpec, errors: _Errors) -> Records:
    names, contents, labels = [], [], []
    for url, label in zip(chunk.urls, chunk.labels, strict=True):
        try:
            with open_file(url, storage) as file:
                contents.append(bytes(file.read()))
        except OSError as error:
            errors.report(url, error)
            continue
        names.append(url)
        labels.append(label)
    table = pa.table({"file": names, "bytes": pa.array(contents, pa.large_binary()), "label": labels})
    return Records(table, errors.skipped)


def _read_documents(chunk: Chunk, storage: StorageSpec, errors: _Errors) -> Records:
    records = _read_files(chunk, storage, errors)
    contents = records.table["bytes"].to_pylist()
    texts = pa.array([content.decode("utf-8", errors="replace") for content in contents], pa.large_string())
    return Records(records.table.drop_columns(["bytes"]).append_column("text", texts), records.skipped)


def _read_webdataset(chunk: Chunk, storage: StorageSpec, errors: _Errors) -> Records:
    """Read a tar in which files with the same stem are one record: ``0001.jpg`` and ``0001.cls``."""
    samples: dict[str, Row] = {}
    try:
        with open_file(chunk.urls[0], storage) as file, tarfile.open(fileobj=io.BytesIO(file.read())) as tar:
            for member in tar:
                stem, _, suffix = member.name.partition(".") if "/" not in member.name else _split(member.name)
                content = tar.extractfile(member)
                if content:
                    samples.setdefault(stem, {"file": f"{chunk.urls[0]}/{stem}"})[suffix] = content.read()
    except tarfile.TarError as error:
        errors.report(chunk.urls[0], error)
    rows = []
    for sample in samples.values():
        try:
            rows.append(_webdataset_row(sample))
        except ValueError as error:
            errors.report(sample["file"], error)
    return Records(table_of(rows), errors.skipped)


def _split(name: str) -> tuple[str, str, str]:
    folder, _, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    return f"{folder}/{stem}", dot, suffix


def _webdataset_row(sample: Row) -> Row:
    row: Row = {"file": sample["file"]}
    for suffix, content in sorted(sample.items()):
        if suffix == "file":
            continue
        if suffix in ("cls", "txt", "text"):
            row["label" if suffix == "cls" else "text"] = content.decode("utf-8", errors="replace").strip()
        elif suffix == "json":
            row |= json.loads(content)
        else:
            row["bytes"] = content
    return row


def _count_parts(url: str, format_: str, storage: StorageSpec) -> int:
    """Return the number of parts of a file that can be read independently."""
    with open_file(url, storage) as file:
        if format_ == "parquet":
            return int(parquet.ParquetFile(file).num_row_groups)
        try:
            return int(ipc.open_file(file).num_record_batches)
        except pa.ArrowInvalid:
            return 1


_READERS: dict[str, Callable[[Chunk, StorageSpec, _Errors], Records]] = {
    "text": _read_text,
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "parquet": _read_parquet,
    "arrow": _read_arrow,
    "huggingface": _read_arrow,
    "images": _read_files,
    "audio": _read_files,
    "documents": _read_documents,
    "webdataset": _read_webdataset,
}
