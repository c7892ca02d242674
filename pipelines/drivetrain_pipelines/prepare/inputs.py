"""A user's inputs for a trained model, converted to samples in the same way as its training data."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from drivetrain_pipelines.errors import InputError, PrepareError
from drivetrain_pipelines.prepare.facts import Conversion, settle
from drivetrain_pipelines.prepare.parts import Part, Task, part_of
from drivetrain_pipelines.prepare.record_reader import RecordReader
from drivetrain_pipelines.prepare.samples import SampleMaker
from drivetrain_pipelines.prepare.tokenizer import TextEncoder
from drivetrain_pipelines.prepare.units import UnitMaker
from drivetrain_pipelines.raw.chunks import Chunk, chunk_files
from drivetrain_pipelines.raw.fields import TEXT, column_name
from drivetrain_pipelines.raw.formats import FORMATS, endings_of, format_of
from drivetrain_pipelines.raw.records import Records
from drivetrain_pipelines.raw.sources import SourceFile
from drivetrain_pipelines.spec import DataSpec
from drivetrain_pipelines.storage.arrow_types import numbers_in, row_of
from drivetrain_pipelines.storage.checksums import block_digests
from drivetrain_pipelines.storage.folder import StorageFolder
from drivetrain_pipelines.storage.shards import Manifest, Shard, encode_shard
from drivetrain_pipelines.stream.columns import Columns
from drivetrain_pipelines.stream.dataset import Dataset

_SPLIT = "given"
_TABLES = tuple(ending for name in ("jsonl", "json", "csv", "parquet", "arrow") for ending in endings_of(name))


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
    plain = spec.model_copy(update={"transform": None, "reader": None, "on_error": "fail", "split_by": None})
    reader = RecordReader(plain, Path(), predicting=True)
    allowed = f"a file whose records have a text in the column {spec.text_column!r}"
    try:
        tables = [reader.read(chunk).table for chunk in _chunks(given, plain)]
    except PrepareError as error:
        raise InputError("INPUT", repr(given), allowed, error.problem) from error
    texts = [text for table in tables if table.num_rows for text in table.column(TEXT).to_pylist()]
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
    encoder = TextEncoder(tokenizer, spec.tokenizer) if tokenizer and spec.kind == "tokens" else None
    try:
        batches = _samples(_records(given, strict, code_folder), strict, encoder, schema)
    except (PrepareError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
        problem = error.problem if isinstance(error, PrepareError) else str(error)
        raise InputError("INPUT", repr(given)[:200], f"a file with {spec.kind} for this model", problem) from error
    if not batches:
        raise InputError("INPUT", repr(given)[:200], "a file with at least one sample")
    return _columns(pa.Table.from_batches(batches).combine_chunks().to_batches()[0])


def _samples(
    records: Iterable[tuple[Chunk, Records]], spec: DataSpec, encoder: TextEncoder | None, schema: pa.Schema | None
) -> list[pa.RecordBatch]:
    """Make samples by both stages of a preparation, in memory."""
    tasks, parts, blocks = list[Task](), list[Part](), dict[str, pa.RecordBatch]()

    def keep(units: pa.RecordBatch) -> tuple[str, int]:
        blocks[name := str(len(blocks))] = units
        return name, 0

    for number, (chunk, read) in enumerate(records):
        made = UnitMaker(spec, encoder).make(read.table, _SPLIT)
        tasks.append(Task(number, _SPLIT, chunk))
        parts.append(part_of(made, read, spec, encoder, keep))
    facts = settle(spec, tasks, parts)
    conversion = _like(facts.conversion, schema, blocks.values()) if schema else facts.conversion
    maker = SampleMaker(spec, conversion, encoder.padding if encoder else 0)
    found = (maker.make(group, ((blocks[file], at) for file, at in group.blocks)) for group in facts.groups)
    batches = [batch for samples in found for batch in samples.batches.values()]
    return [_with_label(batch, spec) for batch in batches] if schema is None or "label" in schema.names else batches


def _records(given: str, spec: DataSpec, code_folder: Path) -> Iterator[tuple[Chunk, Records]]:
    reader = RecordReader(spec, code_folder, predicting=True)
    if spec.kind == "tokens" and not _is_table(given):
        yield Chunk("documents", (given,)), reader.read_text(text_of(given))
        return
    for chunk in _chunks(given, spec):
        yield chunk, reader.read(chunk)


def _chunks(given: str, spec: DataSpec) -> list[Chunk]:
    path = Path(given)
    if not path.is_file():
        raise InputError("INPUT", repr(given)[:200], "an existing file")
    file = SourceFile(str(path.absolute()), path.stat().st_size, "")
    format_ = format_of([file.url], "any" if spec.reader else "auto", "INPUT")
    if format_ in FORMATS and FORMATS[format_].file_per_record:
        return [Chunk(format_, (file.url,))]
    return chunk_files([file], format_, spec.chunk_bytes, spec.storage)


def _is_table(given: str) -> bool:
    """Check whether an input is a file of many records, by its name."""
    try:
        return Path(given).is_file() and given.lower().endswith(_TABLES)
    except (OSError, ValueError):  # a long text is not a valid file name
        return False


def _like(conversion: Conversion, schema: pa.Schema, blocks: Iterable[pa.RecordBatch]) -> Conversion:
    """Return the conversion to the types of the dataset: a file of integers may stand for floats.

    Raises:
        PrepareError: the numbers have another shape, or do not fit.
    """
    fields = {field: conversion.schema.field(field).type for field in conversion.schema.names}
    for field in list(fields):
        if not (name := column_name(field)):
            continue
        (dtype, shape), (_, given) = row_of(schema.field(name).type), row_of(conversion.schema.field(field).type)
        if shape != given:
            raise PrepareError(f"a row of the column {name!r} has the shape {list(given)} instead of {list(shape)}")
        for units in blocks:
            numbers = numbers_in(units.column(field))
            if dtype.kind in "iu" and not np.array_equal(numbers.astype(dtype), numbers):
                raise PrepareError(f"the numbers of the column {name!r} are not all of the type {dtype}")
        fields[field] = schema.field(name).type
    return replace(conversion, schema=pa.schema(fields))


def _with_label(batch: pa.RecordBatch, spec: DataSpec) -> pa.RecordBatch:
    """Add a label, which the model predicts."""
    if "label" in batch.schema.names or spec.kind == "columns":
        return batch
    return batch.append_column("label", pa.array(np.zeros(batch.num_rows, np.int64)))


def _columns(batch: pa.RecordBatch) -> Columns:
    """Read rows as the rows of a dataset are read, through a temporary dataset."""
    with tempfile.TemporaryDirectory(prefix="drivetrain-inputs-") as path:
        folder, encoded = StorageFolder(path), encode_shard(batch)
        folder.write(f"{_SPLIT}.arrow", encoded)
        shard = Shard(f"{_SPLIT}.arrow", batch.num_rows, encoded.size, block_digests(memoryview(encoded)), 0)
        schema = pa.ipc.open_file(encoded).schema
        Manifest(_SPLIT, "0", schema, {_SPLIT: [shard]}, {}, {}).write(folder)
        return Dataset(path).read(_SPLIT, np.arange(batch.num_rows))
