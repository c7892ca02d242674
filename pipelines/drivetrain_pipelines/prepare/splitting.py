"""Selection of the samples held out for evaluation: by content, so it is stable when data is added."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

TRAIN, EVAL = "train", "eval"
AUTO = "auto"
_LARGEST_EXACT = 1 << 53  # smaller integers are exact in float64


class Splitter:
    """Divides samples into splits.

    Args:
        split: the split of all samples; `AUTO` divides them into ``train`` and ``eval``.
        eval_fraction: fraction of the samples that is held out, with `AUTO`.
        train_fraction: fraction of the training samples that is kept; a smaller fraction is a subset of a larger one.
    """

    def __init__(self, split: str, eval_fraction: float, train_fraction: float = 1.0) -> None:
        self._split, self._eval_fraction, self._train_fraction = split, eval_fraction, train_fraction

    def groups(
        self, contents: Iterable[bytes], group_keys: Sequence[bytes] | None = None
    ) -> dict[str, npt.NDArray[np.int64]]:
        """Return the indices of the samples in each split, ascending. Equal contents always get the same split.

        Args:
            group_keys: of each sample; samples with the same key get the same split. By default the content.
        """
        samples = list(contents)
        if self._split == AUTO:
            held_out = _below(self._eval_fraction, group_keys or samples, 1)
            groups = {TRAIN: np.flatnonzero(~held_out), EVAL: np.flatnonzero(held_out)}
        else:
            groups = {self._split: np.arange(len(samples))}
        if self._train_fraction < 1 and TRAIN in groups:
            kept = _below(self._train_fraction, samples, 2)
            groups[TRAIN] = groups[TRAIN][kept[groups[TRAIN]]]
        return groups


def contents_of(columns: Sequence[npt.NDArray[Any]]) -> list[bytes]:
    """Return the content of each row of numbers ``[rows, ...]``: the same for equal numbers of any type.

    A number is its nearest float64. Where integers differ from it, their differences follow.
    """
    rows = len(columns[0])
    floats = [values.reshape(rows, -1).astype(np.float64) + 0.0 for values in columns]  # -0.0 becomes 0.0
    for values in floats:
        values[np.isnan(values)] = np.nan  # one of the many representations
    contents = [row.tobytes() for row in np.concatenate(floats, axis=1)]
    for values, nearest in zip(columns, floats, strict=True):
        if values.dtype not in (np.int64, np.uint64):
            continue
        flat = values.reshape(rows, -1)
        for row in np.flatnonzero((np.abs(nearest) >= _LARGEST_EXACT).any(axis=1)):
            differences = [int(value) - int(near) for value, near in zip(flat[row], nearest[row], strict=True)]
            if any(differences):
                contents[row] += repr(differences).encode()
    return contents


def _below(fraction: float, contents: Sequence[bytes], seed: int) -> npt.NDArray[np.bool_]:
    threshold = int(fraction * (1 << 64))
    return np.array([xxhash.xxh3_64_intdigest(content, seed=seed) < threshold for content in contents], bool)
