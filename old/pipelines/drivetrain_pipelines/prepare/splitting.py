"""Selection of the samples held out for evaluation: by content, so it is stable when data is added."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import xxhash

AUTO = "auto"


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
            groups = {"train": np.flatnonzero(~held_out), "eval": np.flatnonzero(held_out)}
        else:
            groups = {self._split: np.arange(len(samples))}
        if self._train_fraction < 1 and "train" in groups:
            kept = _below(self._train_fraction, samples, 2)
            groups["train"] = groups["train"][kept[groups["train"]]]
        return groups


def _below(fraction: float, contents: Sequence[bytes], seed: int) -> npt.NDArray[np.bool_]:
    threshold = int(fraction * (1 << 64))
    return np.array([xxhash.xxh3_64_intdigest(content, seed=seed) < threshold for content in contents], bool)
