"""The order of one stream of samples: epochs, lanes, windows.

An epoch puts the shards in a random order. *Lanes* divide that row of samples into equal stretches; position ``q`` of
the epoch belongs to lane ``q mod lanes``. Inside its stretch a lane shuffles *windows* of samples, one after another.
At any time a lane therefore needs the few shards of one window, however large the dataset; the windows of different
lanes end at different times, so the demand for new shards is even. Lanes do not depend on the world size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from drivetrain_pipelines.order.permutation import Int64Array, mix_key, mix_keys, permute

_SHARDS, _WINDOW = 1, 2  # what a key is for


@dataclass(frozen=True)
class StreamOrder:
    """Endless epochs over the samples of some shards, each sample once per epoch.

    Attributes:
        rows: samples in each shard.
        key: names this stream's randomness; from the job's seed.
        lanes: stretches that are read side by side.
        window: samples that are shuffled among each other; at best a power of four.
    """

    rows: tuple[int, ...]
    key: int
    lanes: int
    window: int

    @cached_property
    def size(self) -> int:
        """Samples per epoch."""
        return sum(self.rows)

    def locate(self, counters: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Shard and row of the samples that this stream delivers as its numbers ``counters``; int64 ``[n]``."""
        epochs, offsets = np.divmod(counters, self.size)
        places = self._shuffle(epochs, offsets)
        shards, rows = np.empty_like(places), np.empty_like(places)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            sequence, first = _shard_sequence(self.rows, mix_key(self.key, _SHARDS, int(epoch)))
            slots = np.searchsorted(first, places[chosen], side="right") - 1
            shards[chosen], rows[chosen] = sequence[slots], places[chosen] - first[slots]
        return shards, rows

    def _shuffle(self, epochs: Int64Array, offsets: Int64Array) -> Int64Array:
        """Places in the epoch's row of shards: each offset's lane, window, and place within the window."""
        step, lane = np.divmod(offsets, self.lanes)
        short, longer = divmod(self.size, self.lanes)  # the first `longer` lanes have one sample more
        lane_begin = lane * short + np.minimum(lane, longer)
        lane_size = short + (lane < longer)
        # The first window of a lane is cut short by the lane's number, which staggers the ends of all others.
        cut = lane * self.window // self.lanes
        number, within = np.divmod(step + cut, self.window)
        window_begin = np.maximum(number * self.window - cut, 0)
        window_size = np.minimum((number + 1) * self.window - cut, lane_size) - window_begin
        within -= np.where(number == 0, cut, 0)
        windows_per_lane = self.size // self.window + 2
        keys = mix_keys(mix_key(self.key, _WINDOW), (epochs * self.lanes + lane) * windows_per_lane + number)
        places: Int64Array = lane_begin + window_begin + permute(within, _one_if_equal(window_size), keys)
        return places


def _one_if_equal(sizes: Int64Array) -> int | Int64Array:
    """Nearly always all windows are whole, which makes the arithmetic cheaper."""
    return int(sizes[0]) if sizes.size and (sizes == sizes[0]).all() else sizes


@lru_cache(maxsize=64)
def _shard_sequence(rows: tuple[int, ...], key: int) -> tuple[Int64Array, Int64Array]:
    """The shards of an epoch in their order, and the place of the first sample of each."""
    sequence = permute(np.arange(len(rows), dtype=np.int64), len(rows), key)
    first = np.concatenate([[0], np.cumsum(np.asarray(rows, np.int64)[sequence])[:-1]])
    return sequence, first
