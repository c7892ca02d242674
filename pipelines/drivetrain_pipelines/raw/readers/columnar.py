"""Parquet and Arrow files: columns with types, read by parts."""

from __future__ import annotations

import pyarrow as pa
from pyarrow import feather, ipc, parquet

from drivetrain_pipelines.raw.chunks import Chunk
from drivetrain_pipelines.raw.readers.errors import readable
from drivetrain_pipelines.raw.records import Needed, Table, check_unique
from drivetrain_pipelines.raw.sources import open_file
from drivetrain_pipelines.spec import StorageSpec

_FEATHER_1 = b"FEA1"


def read_parquet(chunk: Chunk, storage: StorageSpec, needed: Needed | None) -> Table:
    """Read the needed columns of row groups. Raises `PrepareError`."""
    (url,) = chunk.urls
    with readable(url, "a Parquet file"), open_file(url, storage) as file:
        opened = parquet.ParquetFile(file)
        names = list(opened.schema_arrow.names)
        check_unique(names, needed, url)
        chosen = None if needed is None else [name for name in names if name in needed.names]
        stop = opened.num_row_groups if chunk.start == chunk.stop else chunk.stop
        first = sum(opened.metadata.row_group(group).num_rows for group in range(chunk.start))
        table = opened.read_row_groups(list(range(chunk.start, stop)), columns=chosen, use_threads=False)
        return _table(url, table, names, chosen, first)


def read_arrow(chunk: Chunk, storage: StorageSpec, needed: Needed | None) -> Table:
    """Read the needed columns of record batches: files, Feather files and streams. Raises `PrepareError`."""
    (url,) = chunk.urls
    with readable(url, "an Arrow file"), open_file(url, storage) as file:
        content = pa.BufferReader(file.read())
        if content.read(len(_FEATHER_1)) == _FEATHER_1:
            content.seek(0)
            table, first = feather.read_table(content, memory_map=False), 0
        else:
            content.seek(0)
            table, first = _batches(content, chunk)
        names = list(table.schema.names)
        check_unique(names, needed, url)
        chosen = names if needed is None else [name for name in names if name in needed.names]
        return _table(url, table, names, chosen, first)


def _batches(content: pa.BufferReader, chunk: Chunk) -> tuple[pa.Table, int]:
    """Return the batches of a chunk, and the number of rows before them."""
    try:
        opened = ipc.open_file(content)
    except pa.ArrowInvalid:  # Hugging Face writes the stream format
        content.seek(0)
        return ipc.open_stream(content).read_all(), 0
    stop = opened.num_record_batches if chunk.start == chunk.stop else chunk.stop
    first = sum(opened.get_batch(number).num_rows for number in range(chunk.start))
    return pa.Table.from_batches([opened.get_batch(n) for n in range(chunk.start, stop)], opened.schema), first


def _table(url: str, table: pa.Table, names: list[str], chosen: list[str] | None, first: int) -> Table:
    values = {name: _joined(table[name]) for name in (names if chosen is None else chosen)}
    return Table(url, values, tuple(names), table.num_rows, lambda row: f"{url}, row {first + row + 1}")


def _joined(column: pa.ChunkedArray) -> pa.Array:
    if column.num_chunks == 1:
        return column.chunk(0)
    if pa.types.is_dictionary(column.type):
        column = column.unify_dictionaries()
    return column.combine_chunks() if column.num_chunks else pa.array([], column.type)
