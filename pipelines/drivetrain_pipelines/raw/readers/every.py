"""The reader of each format of records. Running text is read in windows instead."""

from __future__ import annotations

from collections.abc import Callable

from drivetrain_pipelines.raw.chunks import Chunk
from drivetrain_pipelines.raw.readers.columnar import read_arrow, read_parquet
from drivetrain_pipelines.raw.readers.delimited import read_delimited
from drivetrain_pipelines.raw.readers.json_documents import read_json
from drivetrain_pipelines.raw.readers.json_lines import read_json_lines
from drivetrain_pipelines.raw.readers.single_files import read_files
from drivetrain_pipelines.raw.readers.tar_archives import read_tar
from drivetrain_pipelines.raw.records import Needed, Raw
from drivetrain_pipelines.spec import StorageSpec

Reader = Callable[[Chunk, StorageSpec, Needed | None], Raw]

READERS: dict[str, Reader] = {
    "jsonl": read_json_lines,
    "json": read_json,
    "csv": read_delimited,
    "parquet": read_parquet,
    "arrow": read_arrow,
    "huggingface": read_arrow,
    "images": read_files,
    "audio": read_files,
    "documents": read_files,
    "webdataset": read_tar,
}


def read_raw(chunk: Chunk, storage: StorageSpec, needed: Needed | None) -> Raw:
    """Read the records of a chunk, unconverted.

    Args:
        needed: what the job reads; None for whole records, for a function of the job.

    Raises:
        PrepareError: the file cannot be read, or lacks a column that is needed.
    """
    return READERS[chunk.format](chunk, storage, needed)
