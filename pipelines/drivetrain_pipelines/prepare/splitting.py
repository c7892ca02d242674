"""Which samples are held out for evaluation: decided by their content, so it is stable when data is added."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import xxhash

AUTO = "auto"


class Splitter:
    """Sorts samples into splits.

    Args:
        split: the one they all go to; `AUTO` divides them into ``train`` and ``eval``.
        eval_fraction: of the samples, where they are divided.
    """

    def __init__(self, split: str, eval_fraction: float) -> None:
        self._split, self._threshold = split, int(eval_fraction * (1 << 64))

    def groups(self, contents: Iterable[bytes]) -> dict[str, npt.NDArray[np.int64]]:
        """Numbers of the samples in each split, ascending. Equal contents always go together."""
        if self._split != AUTO:
            return {self._split: np.arange(sum(1 for _ in contents))}
        held_out = np.array([xxhash.xxh3_64_intdigest(c, seed=1) < self._threshold for c in contents], bool)
        return {"train": np.flatnonzero(~held_out), "eval": np.flatnonzero(held_out)}
