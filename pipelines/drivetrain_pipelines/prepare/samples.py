"""Samples from the units of a group: selected, packed, labelled and converted. The second stage of a preparation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from drivetrain_pipelines.prepare.facts import Conversion, Group
from drivetrain_pipelines.prepare.packing import concatenate, fit
from drivetrain_pipelines.prepare.splitting import Splitter
from drivetrain_pipelines.prepare.units import TOKENS, layout_of, sizes_of
from drivetrain_pipelines.raw.fields import LABEL, SAMPLE, column_name
from drivetrain_pipelines.spec import DataSpec
from drivetrain_pipelines.storage.arrow_types import array_of, is_ragged, numbers_in, row_of

_SAMPLE_NAMES = {"image": "image", "audio": "mel"}


@dataclass
class Samples:
    """The samples of a group.

    Attributes:
        batches: rows of each split.
        token_counts: occurrences of every token in ``train``; empty where there are no tokens.
    """

    batches: dict[str, pa.RecordBatch] = field(default_factory=dict)
    token_counts: list[int] = field(default_factory=list)


class SampleMaker:
    """Makes samples of units; a pure function of units, settings and the facts of the dataset.

    Tokens become ``tokens`` ``[sequence_length + 1]``, so that every sample has ``sequence_length`` targets; with
    ``packing: pad``, a sample has ``sequence_length`` tokens.

    Args:
        spec: the job's data section.
        conversion: how units become rows.
        padding: id of the padding token.
    """

    def __init__(self, spec: DataSpec, conversion: Conversion, padding: int = 0) -> None:
        self._spec, self._conversion, self._padding = spec, conversion, padding
        self._layout, self._width = layout_of(spec), spec.sequence_length + 1

    def make(self, group: Group, blocks: Iterable[tuple[pa.RecordBatch, int]]) -> Samples:
        """Make the samples of a group.

        Args:
            blocks: units, each block with the position of its first.
        """
        own = [self._select(units, at, group) for units, at in blocks]
        if self._layout == "tokens":
            columns = {
                TOKENS: concatenate(np.concatenate([numbers_in(units.column(TOKENS)) for units in own]), self._width)
            }
            return self._samples(self._divided(columns, group))
        if self._layout == "pieces":
            return self._samples({group.split: self._fitted(own)})
        return self._samples({group.split: self._rows([units for units in own if units.num_rows])})

    def _select(self, units: pa.RecordBatch, at: int, group: Group) -> pa.RecordBatch:
        """Return the units that begin in the group."""
        if self._layout == "tokens":
            first = max(0, group.start - at)
            return units.slice(first, max(0, group.stop - at - first))
        sizes = sizes_of(units, self._layout) + (self._conversion.row_bytes if self._layout == "rows" else 0)
        starts = at + np.cumsum(sizes) - sizes
        first, stop = np.searchsorted(starts, (group.start, group.stop)).tolist()
        return units.slice(first, stop - first)

    def _divided(self, columns: dict[str, npt.NDArray[Any]], group: Group) -> dict[str, dict[str, npt.NDArray[Any]]]:
        if not group.running:
            return {group.split: columns}
        splitter = Splitter(group.split, self._spec.eval_fraction, self._spec.train_fraction)
        groups = splitter.groups(row.tobytes() for row in columns[TOKENS])
        return {name: {TOKENS: columns[TOKENS][rows]} for name, rows in groups.items()}

    def _fitted(self, own: list[pa.RecordBatch]) -> dict[str, npt.NDArray[Any]]:
        pieces = [values for units in own for values in _lists(units.column(TOKENS))]
        tokens, segments = fit(pieces, self._width, self._padding)
        dtype = pieces[0].dtype if pieces else np.uint16
        return {TOKENS: tokens.astype(dtype), "segments": segments.astype(np.uint16)}

    def _rows(self, own: list[pa.RecordBatch]) -> dict[str, Any]:
        """Return the columns of rows: arrays of numbers, or Arrow arrays of values of varying length."""
        columns: dict[str, Any] = {}
        if not own:
            return columns
        for name in self._conversion.schema.names:
            kind = self._conversion.schema.field(name).type
            if name == LABEL:
                assert self._conversion.labels is not None
                labels = [label for units in own for label in units.column(LABEL).to_pylist()]
                columns["label"] = np.array([self._conversion.labels[label] for label in labels], np.int64)
            elif is_ragged(kind):
                columns[self._name(name)] = pa.concat_arrays([units.column(name) for units in own])
            else:
                dtype = row_of(kind)[0]
                values = np.concatenate([numbers_in(units.column(name)).astype(dtype) for units in own])
                columns[self._name(name)] = values
        return columns

    def _name(self, name: str) -> str:
        """Return the name of a field in the dataset."""
        return _SAMPLE_NAMES[self._spec.kind] if name == SAMPLE else column_name(name) or name

    def _samples(self, columns_of: dict[str, dict[str, Any]]) -> Samples:
        made = Samples()
        for split, columns in columns_of.items():
            if columns and len(next(iter(columns.values()))):
                arrays = {
                    name: values if isinstance(values, pa.Array) else array_of(values)
                    for name, values in columns.items()
                }
                made.batches[split] = pa.record_batch(arrays)
        if self._conversion.vocab_size:
            made.token_counts = self._count(columns_of.get("train", {}))
        return made

    def _count(self, columns: dict[str, npt.NDArray[Any]]) -> list[int]:
        tokens = columns.get(TOKENS, np.zeros(0, np.int64))
        counted = tokens[columns["segments"] > 0] if "segments" in columns else tokens.reshape(-1)
        return np.bincount(counted, minlength=self._conversion.vocab_size).tolist()  # type: ignore[no-any-return]


def _lists(array: pa.Array) -> list[npt.NDArray[Any]]:
    """Return the values of each list."""
    offsets, values = array.offsets.to_numpy(), array.values.to_numpy()
    return [values[start:stop] for start, stop in pairwise(offsets.tolist())]
