"""Chunks of work: pieces of the files of a source. They depend only on the files and the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import ipc, parquet

from drivetrain_pipelines.raw.formats import FORMATS, compression_of
from drivetrain_pipelines.raw.readers.errors import readable
from drivetrain_pipelines.raw.sources import SourceFile, open_file
from drivetrain_pipelines.raw.windows import WINDOW_BYTES
from drivetrain_pipelines.spec import StorageSpec


@dataclass(frozen=True)
class Chunk:
    """A piece of raw data that is read by one task.

    Attributes:
        urls: one file; or many, with one record each.
        start, stop: bytes in which its lines or windows begin, or row groups, or record batches; equal for whole files.
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
    files: Sequence[SourceFile], format_: str, chunk_bytes: int, storage: StorageSpec, source_index: int = 0
) -> list[Chunk]:
    """Divide files into chunks of about ``chunk_bytes``, in order. For one record per file: `chunk_labelled_files`."""
    chunks: list[Chunk] = []
    splits_at = FORMATS[format_].splits_at if format_ in FORMATS else ""
    for file in files:
        pieces = max(1, -(-file.size // chunk_bytes))
        if splits_at == "lines" and not compression_of(file.url) and file.size:
            size = chunk_bytes
            if format_ == "text":  # its windows do not depend on the size of the chunks
                size = max(1, round(chunk_bytes / WINDOW_BYTES)) * WINDOW_BYTES
            bounds = [(start, min(start + size, file.size)) for start in range(0, file.size, size)]
        elif splits_at == "parts" and pieces > 1:
            groups = _count_parts(file.url, format_, storage)
            pieces = max(1, min(pieces, groups))
            bounds = [(groups * i // pieces, groups * (i + 1) // pieces) for i in range(pieces)]
        else:
            bounds = [(0, 0)]
        chunks += [Chunk(format_, (file.url,), start, stop, source_index) for start, stop in bounds]
    return chunks


def chunk_labelled_files(
    files: Sequence[SourceFile], labels: Mapping[str, str], format_: str, chunk_bytes: int, source_index: int = 0
) -> list[Chunk]:
    """Group whole files into chunks of about ``chunk_bytes``.

    Args:
        labels: label of each file by URL, as written; empty if nothing names labels.
    """
    chunks: list[Chunk] = []
    urls: list[str] = []
    size = 0
    for file in [*files, None]:
        if urls and (file is None or size + file.size > chunk_bytes):
            own = tuple(labels.get(url, "") for url in urls) if labels else ()
            chunks.append(Chunk(format_, tuple(urls), source_index=source_index, labels=own))
            urls, size = [], 0
        if file:
            urls.append(file.url)
            size += file.size
    return chunks


def _count_parts(url: str, format_: str, storage: StorageSpec) -> int:
    """Return the number of parts of a file that can be read independently. Raises `PrepareError`."""
    with readable(url, "a Parquet file" if format_ == "parquet" else "an Arrow file"), open_file(url, storage) as file:
        if format_ == "parquet":
            return int(parquet.ParquetFile(file).num_row_groups)
        try:
            return int(ipc.open_file(file).num_record_batches)
        except pa.ArrowInvalid:
            return 1
