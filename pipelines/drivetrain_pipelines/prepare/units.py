"""Units from the records of a chunk: tokens, pieces of documents, or rows. The first stage of a preparation.

A unit and its split depend only on its own record, so they are the same in every chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from drivetrain_pipelines.errors import PrepareError
from drivetrain_pipelines.prepare.packing import pieces_of
from drivetrain_pipelines.prepare.splitting import Splitter, contents_of
from drivetrain_pipelines.prepare.tokenizer import TextEncoder, token_dtype
from drivetrain_pipelines.raw.fields import AFTER, BEFORE, CONTENT, GROUP, LABEL, SAMPLE, TEXT, column, column_names
from drivetrain_pipelines.spec import DataSpec
from drivetrain_pipelines.storage.arrow_types import array_of, is_ragged, numbers_in

TOKENS = "tokens"  # column of units that are tokens, pieces or padded documents
MAX_LABELS = 100_000

Layout = Literal["tokens", "pieces", "rows"]


@dataclass
class Units:
    """The units of a chunk.

    Attributes:
        batches: units of each split.
        ranges, labels, dropped_tokens: see `drivetrain_pipelines.prepare.parts.Part`.
    """

    batches: dict[str, pa.RecordBatch] = field(default_factory=dict)
    ranges: dict[str, tuple[int, int]] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    dropped_tokens: int = 0


def layout_of(spec: DataSpec) -> Layout:
    """Return what a unit is: a token of one long row, a piece of a document that is kept whole, or a row."""
    if spec.kind != "tokens" or spec.packing == "pad":
        return "rows"
    return "tokens" if spec.packing == "concatenate" else "pieces"


class UnitMaker:
    """Makes units of records; a pure function of records and settings.

    Args:
        spec: the job's data section.
        encoder: for tokens.
    """

    def __init__(self, spec: DataSpec, encoder: TextEncoder | None) -> None:
        self._spec, self._encoder = spec, encoder

    def make(self, table: pa.Table, split: str) -> Units:
        """Make the units of records with the fields of `drivetrain_pipelines.raw.fields`.

        Args:
            split: split of the records, or `drivetrain_pipelines.prepare.splitting.AUTO`.

        Raises:
            PrepareError: more than `MAX_LABELS` labels.
        """
        if not table.num_rows:
            return Units()
        if BEFORE in table.column_names:
            return self._running_text(table, split)
        return self._documents(table, split) if self._spec.kind == "tokens" else self._rows(table, split)

    def _running_text(self, table: pa.Table, split: str) -> Units:
        """Encode windows. Their samples are divided into splits when they are packed."""
        encoder = self._text_encoder
        texts = zip(*(table[name].to_pylist() for name in (BEFORE, TEXT, AFTER)), strict=True)
        return Units({split: self._flat([encoder.window(*window) for window in texts])})

    def _documents(self, table: pa.Table, split: str) -> Units:
        texts = table[TEXT].to_pylist()
        rows_of = self._splitter(split).groups([text.encode() for text in texts], _group_keys(table))
        kept = {name: rows for name, rows in rows_of.items() if len(rows)}
        if self._spec.packing == "pad":
            tokens, dropped = self._text_encoder.padded(texts, self._spec.sequence_length)
            columns = {TOKENS: array_of(tokens.astype(self._dtype)), **_label_column(table)}
            batch = pa.record_batch(columns)
            used = np.concatenate([np.zeros(0, np.int64), *kept.values()])
            made = Units({name: take(batch, rows) for name, rows in kept.items()}, labels=_labels(table))
            made.dropped_tokens = int(dropped[used].sum())
            return made
        documents = self._text_encoder.documents(texts)
        make = self._flat if self._spec.packing == "concatenate" else self._pieces
        return Units({name: make([documents[row] for row in rows]) for name, rows in kept.items()})

    def _rows(self, table: pa.Table, split: str) -> Units:
        columns = {SAMPLE: whole(table[SAMPLE])} if SAMPLE in table.column_names else {}
        columns |= _label_column(table)
        numbers = {name: numeric(whole(table[column(name)])) for name in column_names(table.column_names)}
        columns |= {column(name): values for name, values in numbers.items()}
        rows_of = self._splitter(split).groups(_contents(table, numbers), _group_keys(table))
        batch = pa.record_batch(columns)
        made = Units({name: take(batch, rows) for name, rows in rows_of.items() if len(rows)}, labels=_labels(table))
        made.ranges = {name: found for name, values in numbers.items() if (found := _range(values))}
        return made

    def _flat(self, documents: list[npt.NDArray[np.int64]]) -> pa.RecordBatch:
        tokens = np.concatenate([np.zeros(0, np.int64), *documents])
        return pa.record_batch({TOKENS: array_of(tokens.astype(self._dtype))})

    def _pieces(self, documents: list[npt.NDArray[np.int64]]) -> pa.RecordBatch:
        pieces = pieces_of(documents, self._spec.sequence_length + 1)
        offsets = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
        values = array_of(np.concatenate([np.zeros(0, np.int64), *pieces]).astype(self._dtype))
        return pa.record_batch({TOKENS: pa.LargeListArray.from_arrays(offsets, values)})

    def _splitter(self, split: str) -> Splitter:
        return Splitter(split, self._spec.eval_fraction, self._spec.train_fraction)

    @property
    def _text_encoder(self) -> TextEncoder:
        assert self._encoder, "tokens need a tokenizer"
        return self._encoder

    @property
    def _dtype(self) -> type[np.uint16] | type[np.int32]:
        return token_dtype(self._text_encoder.vocab_size)


def sizes_of(batch: pa.RecordBatch, layout: Layout) -> npt.NDArray[np.int64]:
    """Return the size of each unit: its tokens; for rows, the bytes of its values of varying length."""
    if layout == "tokens":
        return np.ones(batch.num_rows, np.int64)
    if layout == "pieces":
        return np.asarray(pc.list_value_length(batch.column(TOKENS)), np.int64)
    sizes = np.zeros(batch.num_rows, np.int64)
    for name, values in zip(batch.schema.names, batch.columns, strict=True):
        if name != LABEL and is_ragged(values.type):
            sizes += np.asarray(pc.binary_length(values), np.int64)
    return sizes


def divide(batch: pa.RecordBatch, block_bytes: int) -> Iterator[pa.RecordBatch]:
    """Yield consecutive slices of about ``block_bytes``."""
    rows = max(1, block_bytes * batch.num_rows // max(1, batch.nbytes))
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def take(batch: pa.RecordBatch, rows: npt.NDArray[np.int64]) -> pa.RecordBatch:
    """Select rows of a batch. Arrow cannot take from tensors, only from the lists they are stored in."""
    if len(rows) == batch.num_rows:
        return batch
    columns = []
    for array in batch.columns:
        tensor = isinstance(array.type, pa.BaseExtensionType)
        taken = (array.storage if tensor else array).take(pa.array(rows))
        columns.append(pa.ExtensionArray.from_storage(array.type, taken) if tensor else taken)
    return pa.record_batch(columns, batch.schema.names)


def whole(values: pa.ChunkedArray) -> pa.Array:
    """Return a column of a table as one array."""
    arrays = [chunk.storage if isinstance(chunk.type, pa.BaseExtensionType) else chunk for chunk in values.chunks]
    joined = pa.concat_arrays(arrays)
    return pa.ExtensionArray.from_storage(values.type, joined) if joined.type != values.type else joined


def numeric(values: pa.Array) -> pa.Array:
    """Return truth values as the numbers 0 and 1, and numbers unchanged."""
    if pa.types.is_boolean(values.type):
        return values.cast(pa.uint8())
    return values


def _range(values: pa.Array) -> tuple[int, int] | None:
    """Return the smallest and largest value of 64-bit integers, which other types may not hold exactly."""
    numbers: npt.NDArray[Any] = numbers_in(values)
    if numbers.dtype not in (np.int64, np.uint64) or not numbers.size:
        return None
    return int(numbers.min()), int(numbers.max())


def _label_column(table: pa.Table) -> dict[str, pa.Array]:
    return {LABEL: whole(table[LABEL])} if LABEL in table.column_names else {}


def _labels(table: pa.Table) -> tuple[str, ...] | None:
    if LABEL not in table.column_names:
        return None
    labels = pc.unique(table[LABEL]).to_pylist()
    check_label_count(labels)
    return tuple(sorted(labels))


def check_label_count(labels: Any) -> None:
    """Raise `PrepareError` when there are too many different labels for classes."""
    if len(labels) > MAX_LABELS:
        raise PrepareError(
            f"the records have more than {MAX_LABELS:,} different labels, such as {next(iter(labels))!r}",
            "Set data.label_column to a column with the class, or data.columns for a number that is not a class",
        )


def _group_keys(table: pa.Table) -> list[bytes] | None:
    """Return the group key of each record: records with the same key go to the same split."""
    return [str(value).encode() for value in table[GROUP].to_pylist()] if GROUP in table.column_names else None


def _contents(table: pa.Table, numbers: dict[str, pa.Array]) -> list[bytes]:
    """Return what decides about the split of each row: its file, else its numbers, whatever their type."""
    if CONTENT in table.column_names:
        return table[CONTENT].to_pylist()  # type: ignore[no-any-return]  # pyarrow has no types
    return contents_of([numbers_in(numbers[name]) for name in sorted(numbers)])
