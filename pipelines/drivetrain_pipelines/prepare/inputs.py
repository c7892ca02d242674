"""A user's inputs for a trained model, converted to samples in the same way as its training data."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from drivetrain_pipelines.errors import InputError, PrepareError
from drivetrain_pipelines.prepare.record_reader import RecordReader
from drivetrain_pipelines.prepare.samples import maker_of
from drivetrain_pipelines.prepare.splitting import Splitter
from drivetrain_pipelines.raw.records import FILE_PER_RECORD, Chunk, Records, chunk_files, read
from drivetrain_pipelines.raw.sources import SUFFIXES, SourceFile, format_of
from drivetrain_pipelines.spec import DataSpec
from drivetrain_pipelines.storage.checksums import block_digests
from drivetrain_pipelines.storage.folder import StorageFolder
from drivetrain_pipelines.storage.shards import Manifest, Shard, encode_shard
from drivetrain_pipelines.stream.columns import Columns
from drivetrain_pipelines.stream.dataset import Dataset

_SPLIT = "given"
_TABLES = tuple(ending for name in ("jsonl", "csv", "parquet", "arrow") for ending in SUFFIXES[name])


def text_of(given: str) -> str:
    """Return the content of the file with this name if there is one, else the text itself."""
    path = Path(given)
    try:
        return path.read_text("utf-8") if path.is_file() else given
    except (OSError, UnicodeDecodeError) as error:  # a long text is not a valid file name either
        if isinstance(error, OSError):
            return given
        raise InputError("INPUT", repr(given), "a text, or a file of UTF-8 text", str(error)) from error


def texts_of(given: str, spec: DataSpec) -> list[str]:
    """Return the text of an input, or of every record of a table.

    Raises:
        InputError: the table has no text column, or a record of it has no text.
    """
    if not _is_table(given):
        return [text_of(given)]
    allowed = f"a file whose records have a text in the column {spec.text_column!r}"
    try:
        tables = [read(chunk, spec.storage, skip_bad=False).table for chunk in _chunks(given, spec)]
    except PrepareError as error:
        raise InputError("INPUT", repr(given), allowed, error.problem) from error
    if lacking := [table for table in tables if spec.text_column not in table.column_names]:
        fix = f"It has {', '.join(lacking[0].column_names)}."
        raise InputError("INPUT", repr(given), allowed, fix)
    texts = [text for table in tables for text in table.column(spec.text_column).to_pylist()]
    if odd := [number for number, text in enumerate(texts, 1) if not isinstance(text, str)]:
        raise InputError("INPUT", f"{given!r}, whose record {odd[0]} has none", allowed)
    if not texts:
        raise InputError("INPUT", repr(given), "a file with at least one record")
    return texts


def samples_of(
    given: str, spec: DataSpec, code_folder: Path, tokenizer: Tokenizer | None, schema: pa.Schema | None = None
) -> Columns:
    """Make the samples of one input: of a text, or of all records of a file.

    Args:
        given: text, for a job with a tokenizer; otherwise a file of any format that the job's data may have.
        spec: the job's data section.
        code_folder: the job's code.
        schema: schema of the dataset; numbers are converted to its types.

    Raises:
        InputError: the file does not exist or does not contain the job's kind of data.
    """
    strict = spec.model_copy(update={"on_error": "fail", "train_fraction": 1.0, "split_by": None})
    batches = list[pa.RecordBatch]()
    try:
        every = [*_records(given, strict, code_folder)]
        maker = maker_of(_without_targets(strict, every), tokenizer)
        for records in every:
            made = maker.make(records, Splitter(_SPLIT, spec.eval_fraction)).batches.values()
            batches += [_typed(batch, schema) if schema else batch for batch in made]
    except (PrepareError, pa.ArrowException) as error:
        problem = error.problem if isinstance(error, PrepareError) else str(error)
        raise InputError("INPUT", repr(given)[:200], f"a file with {spec.kind} for this model", problem) from error
    if not batches:
        raise InputError("INPUT", repr(given)[:200], "a file with at least one sample")
    return _columns(pa.Table.from_batches(batches).combine_chunks().to_batches()[0])


def _records(given: str, spec: DataSpec, code_folder: Path) -> Iterator[Records]:
    reader = RecordReader(spec, code_folder)
    if spec.kind == "tokens" and not _is_table(given):
        table = {spec.text_column: [text_of(given)], spec.label_column: [0]}
        yield reader.transformed(Records(pa.table(table)))
        return
    for chunk in _chunks(given, spec):
        records = reader.read(chunk)
        if chunk.format not in FILE_PER_RECORD and (spec.kind == "tokens" or spec.label_column in (spec.columns or ())):
            records = Records(_with_label(records.table, spec.label_column, spec.kind), records.skipped)
        yield records


def _chunks(given: str, spec: DataSpec) -> list[Chunk]:
    path = Path(given)
    if not path.is_file():
        raise InputError("INPUT", repr(given)[:200], "an existing file")
    file = SourceFile(f"file://{path.resolve()}", path.stat().st_size, "")
    format_ = format_of([file.url], "any" if spec.reader else "auto", "INPUT")
    if format_ in FILE_PER_RECORD:
        return [Chunk(format_, (file.url,), labels=(0,))]
    return chunk_files([file], format_, spec.chunk_bytes, spec.storage)


def _is_table(given: str) -> bool:
    """Check whether an input is a file of many records, by its name."""
    try:
        return Path(given).is_file() and given.lower().endswith(_TABLES)
    except (OSError, ValueError):  # a long text is not a valid file name
        return False


def _with_label(table: pa.Table, name: str, kind: str) -> pa.Table:
    """Return a table with a label for each record: the label is what the model predicts, and may be missing."""
    if name in table.column_names:
        if kind == "columns" and not table.column(name).null_count:
            return table
        table = table.drop_columns([name])
    return table.append_column(name, pa.array([0] * table.num_rows))


def _without_targets(spec: DataSpec, every: Sequence[Records]) -> DataSpec:
    """Return the settings without the columns that the records lack: the model need not read all of them."""
    common = [name for name in spec.columns or () if all(name in records.table.column_names for records in every)]
    return spec.model_copy(update={"columns": common}) if {*common} - {spec.label_column} else spec


def _typed(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Cast numbers, and rows of numbers, to the types of the dataset: a file of integers may stand for floats."""

    def plain(kind: pa.DataType) -> bool:
        return bool(pa.types.is_primitive(kind) or pa.types.is_fixed_size_list(kind))

    columns = [
        column.cast(kind) if plain(column.type) and plain(kind := schema.field(name).type) else column
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    ]
    return pa.record_batch(columns, batch.schema.names)


def _columns(batch: pa.RecordBatch) -> Columns:
    """Read rows as the rows of a dataset are read, through a temporary dataset."""
    with tempfile.TemporaryDirectory(prefix="drivetrain-inputs-") as path:
        folder, encoded = StorageFolder(path), encode_shard(batch)
        folder.write(f"{_SPLIT}.arrow", encoded)
        shard = Shard(f"{_SPLIT}.arrow", batch.num_rows, encoded.size, block_digests(memoryview(encoded)), 0)
        schema = pa.ipc.open_file(encoded).schema
        Manifest(_SPLIT, "0", schema, {_SPLIT: [shard]}, {}, {}).write(folder)
        return Dataset(path).read(_SPLIT, np.arange(batch.num_rows))
