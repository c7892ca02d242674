"""A user's inputs for a trained model, converted to samples in the same way as its training data."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from drivetrain_pipelines.errors import InputError, PrepareError
from drivetrain_pipelines.prepare.record_reader import RecordReader
from drivetrain_pipelines.prepare.samples import maker_of
from drivetrain_pipelines.prepare.splitting import Splitter
from drivetrain_pipelines.raw.records import FILE_PER_RECORD, Chunk, Records, chunk_files
from drivetrain_pipelines.raw.sources import SourceFile, format_of
from drivetrain_pipelines.spec import DataSpec
from drivetrain_pipelines.storage.checksums import block_digests
from drivetrain_pipelines.storage.folder import StorageFolder
from drivetrain_pipelines.storage.shards import Manifest, Shard, encode_shard
from drivetrain_pipelines.stream.columns import Columns
from drivetrain_pipelines.stream.dataset import Dataset

_SPLIT = "given"


def text_of(given: str) -> str:
    """Return the content of the file with this name if there is one, else the text itself."""
    path = Path(given)
    try:
        return path.read_text("utf-8") if path.is_file() else given
    except (OSError, UnicodeDecodeError) as error:  # a long text is not a valid file name either
        if isinstance(error, OSError):
            return given
        raise InputError("INPUT", repr(given), "a text, or a file of UTF-8 text", str(error)) from error


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
    maker, batches = maker_of(strict, tokenizer), list[pa.RecordBatch]()
    try:
        for records in _records(given, strict, code_folder):
            made = maker.make(records, Splitter(_SPLIT, spec.eval_fraction)).batches.values()
            batches += [_typed(batch, schema) if schema else batch for batch in made]
    except (PrepareError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
        problem = error.problem if isinstance(error, PrepareError) else str(error)
        raise InputError("INPUT", repr(given)[:200], f"a file with {spec.kind} for this model", problem) from error
    if not batches:
        raise InputError("INPUT", repr(given)[:200], "a file with at least one sample")
    return _columns(pa.Table.from_batches(batches).combine_chunks().to_batches()[0])


def _records(given: str, spec: DataSpec, code_folder: Path) -> Iterator[Records]:
    reader = RecordReader(spec, code_folder)
    if spec.kind == "tokens":
        table = {spec.text_column: [text_of(given)], spec.label_column: [0]}
        yield reader.transformed(Records(pa.table(table)))
        return
    path = Path(given)
    if not path.is_file():
        raise InputError("INPUT", repr(given)[:200], "an existing file")
    file = SourceFile(str(path.resolve()), path.stat().st_size, "")
    format_ = format_of([file.url], "any" if spec.reader else "auto", "INPUT")
    if format_ in FILE_PER_RECORD:
        yield reader.read(Chunk(format_, (file.url,), labels=(0,)))
        return
    for chunk in chunk_files([file], format_, spec.chunk_bytes, spec.storage):
        records = reader.read(chunk)
        lacks_label = spec.label_column in (spec.columns or ()) and spec.label_column not in records.table.column_names
        if lacks_label:  # the label is what the model predicts
            zeros = pa.array([0] * records.table.num_rows)
            records = Records(records.table.append_column(spec.label_column, zeros), records.skipped)
        yield records


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
