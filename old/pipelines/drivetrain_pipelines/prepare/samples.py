"""Samples from the records of a chunk: one maker per kind of data."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import Tokenizer

from drivetrain_pipelines.errors import PrepareError
from drivetrain_pipelines.prepare.audio import log_mel, read_audio
from drivetrain_pipelines.prepare.packing import concatenate, fit, pad
from drivetrain_pipelines.prepare.splitting import Splitter
from drivetrain_pipelines.prepare.tokenizer import END_OF_TEXT, encode, token_dtype
from drivetrain_pipelines.raw.records import Records
from drivetrain_pipelines.spec import DataSpec, ImageSpec
from drivetrain_pipelines.storage.arrow_types import array_of, is_list, numbers_of


@dataclass
class Samples:
    """The samples of a chunk.

    Attributes:
        batches: rows for each split.
        token_counts: occurrences of every token in ``train``; empty where there are no tokens.
        dropped_tokens: tokens that did not fill a sample.
    """

    batches: dict[str, pa.RecordBatch] = field(default_factory=dict)
    token_counts: list[int] = field(default_factory=list)
    dropped_tokens: int = 0


class Maker(Protocol):
    """Makes samples of one kind; a pure function of records and settings."""

    def make(self, records: Records, splitter: Splitter) -> Samples:
        """Make the samples of a chunk. Undecodable files go to ``records.skipped`` if the job allows it."""


class TokenMaker:
    """Texts become ``tokens`` ``[sequence_length + 1]``, so that every sample has ``sequence_length`` targets.

    With ``packing: pad`` a sample has ``sequence_length`` tokens, and a label where the records have one.
    """

    def __init__(self, spec: DataSpec, tokenizer: Tokenizer) -> None:
        self._spec, self._tokenizer = spec, tokenizer
        self._vocabulary = tokenizer.get_vocab_size()
        self._width = spec.sequence_length + 1

    def make(self, records: Records, splitter: Splitter) -> Samples:
        """See `Maker`. Running text is split after packing, documents before."""
        made = Samples(token_counts=[0] * self._vocabulary)
        if not records.table.num_rows:
            return made
        table = records.table.filter(_column(records.table, self._spec.text_column).is_valid())
        texts = [str(text) for text in _column(table, self._spec.text_column).to_pylist()]
        documents = [encode(self._tokenizer, text) for text in texts]
        if self._spec.packing == "pad":
            columns = self._pad(documents, table)
            groups = splitter.groups((text.encode() for text in texts), _group_keys(table, self._spec))
            parts = {split: {name: rows[own] for name, rows in columns.items()} for split, own in groups.items()}
        elif len(documents) == 1 and not self._spec.reader:  # running text
            columns = self._pack(documents, made)
            groups = splitter.groups(row.tobytes() for row in columns["tokens"])
            parts = {split: {name: rows[own] for name, rows in columns.items()} for split, own in groups.items()}
        else:
            end = np.array([self._tokenizer.token_to_id(END_OF_TEXT) or 0], np.int64)
            groups = splitter.groups((text.encode() for text in texts), _group_keys(table, self._spec))
            parts = {
                split: self._pack([np.concatenate([documents[number], end]) for number in own], made)
                for split, own in groups.items()
            }
        for split, columns in parts.items():
            if len(columns["tokens"]):
                made.batches[split] = pa.record_batch({name: array_of(rows) for name, rows in columns.items()})
        if "train" in parts:
            tokens = parts["train"]["tokens"]
            counted = tokens[parts["train"]["segments"] > 0] if "segments" in parts["train"] else tokens.reshape(-1)
            made.token_counts = np.bincount(counted, minlength=self._vocabulary).tolist()
        return made

    def _pad(self, documents: list[npt.NDArray[np.int64]], table: pa.Table) -> dict[str, npt.NDArray[Any]]:
        width = self._spec.sequence_length
        columns = {"tokens": pad(documents, width, padding=0).astype(token_dtype(self._vocabulary))}
        if self._spec.label_column in table.column_names:
            given = _column(table, self._spec.label_column).to_pylist()
            columns["label"] = np.array([_label(value, self._spec) for value in given], np.int64)
        return columns

    def _pack(self, documents: list[npt.NDArray[np.int64]], made: Samples) -> dict[str, npt.NDArray[Any]]:
        kind = token_dtype(self._vocabulary)
        if self._spec.packing == "fit":
            tokens, segments = fit(documents, self._width, padding=0)
            return {"tokens": tokens.astype(kind), "segments": segments.astype(np.uint16)}
        tokens, dropped = concatenate(documents, self._width)
        made.dropped_tokens += dropped
        return {"tokens": tokens.astype(kind)}


class FileMaker:
    """Encoded files, one record each, become arrays of equal shape, with a number as their label.

    A reader of the job may return arrays in the column itself instead of ``bytes``.
    """

    def __init__(self, spec: DataSpec, column: str, decode: Callable[[Any], npt.NDArray[Any]] | None) -> None:
        self._spec, self._name, self._decode = spec, column, decode

    def make(self, records: Records, splitter: Splitter) -> Samples:
        """See `Maker`."""
        table = records.table
        if not table.num_rows:
            return Samples()
        contents = self._contents(table)
        files = table["file"].to_pylist() if "file" in table.column_names else range(len(contents))
        has_labels = self._spec.label_column in table.column_names
        given = _column(table, self._spec.label_column).to_pylist() if has_labels else [0] * len(files)
        rows, kept, labels = [], [], []
        for number, (file, content, label) in enumerate(zip(files, contents, given, strict=True)):
            try:
                label_number, row = _label(label, self._spec), self._decode(content) if self._decode else content
                labels.append(label_number)
                rows.append(row)
                kept.append(number)
            except Exception as error:  # any error of a decoder for a damaged file
                if self._spec.on_error == "fail":
                    fix = "Set data.on_error to skip to leave such files out"
                    raise PrepareError(f"{file} cannot be decoded: {error}", fix) from error
                records.skipped.append(f"{file}: {str(error)[:200]}")
        columns: dict[str, pa.Array] = {
            self._name: array_of(np.stack(rows)) if self._decode and rows else pa.array(rows, pa.large_binary())
        }
        if has_labels:
            columns["label"] = pa.array(labels, pa.int64())
        if not rows:
            return Samples()
        chosen = table.take(kept)
        columns |= {name: _numbers(chosen, name) for name in self._spec.columns or ()}
        group_keys = _group_keys(chosen, self._spec)
        return _divide(pa.record_batch(columns), [bytes(contents[number]) for number in kept], splitter, group_keys)

    def _contents(self, table: pa.Table) -> list[Any]:
        if self._name not in table.column_names:
            return _column(table, "bytes").to_pylist()  # type: ignore[no-any-return]  # pyarrow has no types
        return list(numbers_of(_column(table, self._name)))


class ColumnMaker:
    """Columns of numbers, or of lists of equal length, are taken unchanged."""

    def __init__(self, spec: DataSpec) -> None:
        self._spec = spec

    def make(self, records: Records, splitter: Splitter) -> Samples:
        """See `Maker`."""
        if not records.table.num_rows:
            return Samples()
        batch = pa.record_batch({name: _numbers(records.table, name) for name in self._spec.columns or ()})
        rows = [str(row).encode() for row in batch.to_pylist()]
        return _divide(batch, rows, splitter, _group_keys(records.table, self._spec))


def maker_of(spec: DataSpec, tokenizer: Tokenizer | None) -> Maker:
    """Return the maker for a job's kind of data."""
    if spec.image:
        image = spec.image
        return FileMaker(spec, "image", (lambda content: decode_image(content, image)) if image.decode else None)
    if spec.audio:
        audio = spec.audio
        return FileMaker(spec, "mel", lambda content: log_mel(read_audio(content, audio), audio))
    if spec.columns:
        return ColumnMaker(spec)
    assert tokenizer, "tokens need a tokenizer"
    return TokenMaker(spec, tokenizer)


def decode_image(content: bytes | npt.NDArray[np.uint8], spec: ImageSpec) -> npt.NDArray[np.uint8]:
    """Decode a file or an array to uint8 ``[height, width, channels]``. Raises ValueError, and as Pillow."""
    from PIL import Image, UnidentifiedImageError  # imported here: only image jobs need it

    try:
        opened = Image.open(io.BytesIO(content)) if isinstance(content, bytes) else Image.fromarray(content)
    except UnidentifiedImageError:
        raise ValueError("it is not an image known to Pillow") from None
    with opened as image:
        resized = image.convert(spec.mode).resize((spec.width, spec.height), Image.Resampling.BILINEAR)
        return np.asarray(resized, np.uint8).reshape(spec.height, spec.width, -1)


def _label(value: Any, spec: DataSpec) -> int:
    """Return the number of a label that is a number or a name in the job. Raises `PrepareError` for any other."""
    if spec.classes and value in spec.classes:
        return spec.classes.index(value)
    names = ", ".join(spec.classes) if spec.classes else "none; set data.classes"
    try:
        number = int(value)
    except (TypeError, ValueError) as error:
        raise PrepareError(f"the label {value!r} is neither a number nor one of data.classes ({names})") from error
    if spec.classes and not 0 <= number < len(spec.classes):
        raise PrepareError(f"the label {value!r} is not one of the {len(spec.classes)} data.classes ({names})")
    return number


def _numbers(table: pa.Table, name: str) -> pa.Array:
    """Return a column of numbers, or of lists of equal length."""
    values = _column(table, name)
    if values.null_count:
        raise PrepareError(f"column {name} has {values.null_count} empty values; fill them in data.transform")
    return array_of(np.stack(values.to_numpy(zero_copy_only=False))) if is_list(values.type) else values


def _group_keys(table: pa.Table, spec: DataSpec) -> list[bytes] | None:
    """Return the group key of each record: records with the same key go to the same split."""
    return [str(value).encode() for value in _column(table, spec.split_by).to_pylist()] if spec.split_by else None


def _divide(
    batch: pa.RecordBatch, contents: list[bytes], splitter: Splitter, group_keys: list[bytes] | None
) -> Samples:
    groups = splitter.groups(contents, group_keys)
    return Samples({split: _take(batch, own) for split, own in groups.items() if len(own)})


def _take(batch: pa.RecordBatch, rows: npt.NDArray[np.int64]) -> pa.RecordBatch:
    """Select rows of a batch. Arrow cannot take from tensors, only from the lists they are stored in."""
    columns = []
    for name in batch.schema.names:
        array = batch.column(name)
        tensor = isinstance(array.type, pa.BaseExtensionType)
        taken = (array.storage if tensor else array).take(pa.array(rows))
        columns.append(pa.ExtensionArray.from_storage(array.type, taken) if tensor else taken)
    return pa.record_batch(columns, batch.schema.names)


def _column(table: pa.Table, name: str) -> pa.Array:
    if name not in table.column_names:
        raise PrepareError(f"the records have no column {name!r}; they have {', '.join(table.column_names)}")
    column = table[name].combine_chunks()
    return column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
