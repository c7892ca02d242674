"""Chunks of work: pieces of the files of a source. They depend only on the files and the settings."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
from pyarrow import ipc, parquet

from drivetrain_pipelines.raw.sources import SourceFile, open_file
from drivetrain_pipelines.spec import StorageSpec

_LINE_FORMATS = ("text", "jsonl")  # can be split at any line
FILE_PER_RECORD = ("images", "audio", "documents")  # formats with one record per file


@dataclass(frozen=True)
class Chunk:
    """A piece of raw data that is read by one task.

    Attributes:
        urls: one file; or many, with one record each.
        start, stop: bytes in which its lines begin, or row groups, or record batches; if equal, the whole file.
        source_index: index of the source.
        labels: label of each file, where each file is one record and has one.
    """

    format: str
    urls: tuple[str, ...]
    start: int = 0
    stop: int = 0
    source_index: int = 0
    labels: tuple[str, ...] = ()


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
    files: list[SourceFile], labels: dict[str, str], format_: str, chunk_bytes: int, source_index: int = 0
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


def _count_parts(url: str, format_: str, storage: StorageSpec) -> int:
    """Return the number of parts of a file that can be read independently."""
    with open_file(url, storage) as file:
        if format_ == "parquet":
            return int(parquet.ParquetFile(file).num_row_groups)
        try:
            return int(ipc.open_file(file).num_record_batches)
        except pa.ArrowInvalid:
            return 1
