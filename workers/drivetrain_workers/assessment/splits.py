"""Samples of a run in the form that functions of the job and scikit-learn take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from drivetrain_pipelines.online.transform import OnlineTransform
from drivetrain_pipelines.prepare.tokenizer import TOKENIZER_FILE, load_tokenizer
from drivetrain_pipelines.stream.columns import Columns, Ragged, Values
from drivetrain_pipelines.stream.dataset import Dataset
from tokenizers import Tokenizer

_MAX_ROWS = 50_000
_MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class Splits:
    """The data that a run was trained and evaluated on.

    Attributes:
        train, evaluation: columns by name, arrays ``[rows, ...]`` as in the dataset; of a large split, rows that are
            evenly spaced over it, 50,000 and 1 GiB at most.
        classes: names of the labels 0, 1, ...; empty where there are none.
        tokenizer: tokenizer of a dataset of tokens.
    """

    train: Columns
    evaluation: Columns
    classes: list[str]
    tokenizer: Tokenizer | None

    @classmethod
    def read(cls, dataset: Dataset, online: OnlineTransform | None = None, train: bool = True) -> Splits:
        """Read a dataset version as in an evaluation of the model; without ``train``, the training split is empty."""

        def some(split: str) -> Columns:
            row_bytes = max(1, sum(map(_bytes, rows(split, np.arange(1)).values())))
            return rows(split, evenly_spaced(dataset.manifest.rows(split), min(_MAX_ROWS, _MAX_BYTES // row_bytes)))

        def rows(split: str, numbers: npt.NDArray[np.int64]) -> Columns:
            columns = dataset.read(split, numbers)
            return {**online.apply(columns, None)} if online else columns

        has_tokens = "tokens" in dataset.manifest.schema.names
        tokenizer = load_tokenizer(dataset.folder.read(TOKENIZER_FILE), TOKENIZER_FILE) if has_tokens else None
        return cls(some("train") if train else {}, some("eval"), dataset.manifest.classes, tokenizer)


def row_count(columns: Columns) -> int:
    """Return the number of rows."""
    return len(next(iter(columns.values())))


def evenly_spaced(total: int, max_rows: int) -> npt.NDArray[np.int64]:
    """Return at most ``max_rows`` row numbers, evenly spaced over ``total``."""
    return np.arange(total) if total <= max_rows else np.linspace(0, total - 1, max_rows).astype(np.int64)


def take_rows(values: Values, rows: npt.NDArray[np.int64]) -> Values:
    """Select some rows of a column."""
    if not isinstance(values, Ragged):
        return values[rows]
    pieces = [values.row(int(number)) for number in rows]
    offsets = np.cumsum([0, *map(len, pieces)])
    return Ragged(np.concatenate(pieces), offsets)


def _bytes(values: Any) -> int:
    return int((values.values if isinstance(values, Ragged) else values).nbytes)
