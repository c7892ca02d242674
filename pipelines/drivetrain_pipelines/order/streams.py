"""The order of one stream of samples: epochs, lanes, windows.

An epoch puts the shards in a random order. *Lanes* divide that row of samples into equal stretches; position ``q`` of
the epoch belongs to lane ``q mod lanes``. Inside its stretch a lane shuffles *windows* of samples, one after another.
At any time a lane therefore needs the few shards of one window, however large the dataset; the windows of different
lanes end at different times, so the demand for new shards is even. Lanes do not depend on the world size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

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
        if not counters.size:
            return counters, counters
        epochs = counters // self.size
        places = self._shuffle(epochs, counters - epochs * self.size)
        if epochs.min() == epochs.max():  # nearly always
            return self._find(int(epochs[0]), places)
        shards, rows = np.empty_like(places), np.empty_like(places)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            shards[chosen], rows[chosen] = self._find(int(epoch), places[chosen])
        return shards, rows

    def _shuffle(self, epochs: Int64Array, offsets: Int64Array) -> Int64Array:
        """Places in the epoch's row of shards: each offset's lane, window, and place within the window."""
        step = offsets // self.lanes
        lane = offsets - step * self.lanes
        begin, size, cut = self._lane_begin[lane], self._lane_size[lane], self._first_cut[lane]
        number = (step + cut) // self.window
        window_begin = number * self.window
        window_begin -= cut
        window_size = np.minimum(window_begin + self.window, size)
        np.maximum(window_begin, 0, out=window_begin)
        window_size -= window_begin
        windows_per_lane = self.size // self.window + 2
        keys = mix_keys(mix_key(self.key, _WINDOW), (epochs * self.lanes + lane) * windows_per_lane + number)
        places: Int64Array = permute(step - window_begin, _one_if_equal(window_size), keys)
        places += begin
        places += window_begin
        return places

    @cached_property
    def _lane_size(self) -> Int64Array:
        """Samples of each lane: the first ones have one more where the lanes do not divide the epoch."""
        return np.array([(self.size + self.lanes - 1 - lane) // self.lanes for lane in range(self.lanes)], np.int64)

    @cached_property
    def _lane_begin(self) -> Int64Array:
        """Place of each lane's first sample."""
        return np.cumsum(self._lane_size) - self._lane_size

    @cached_property
    def _first_cut(self) -> Int64Array:
        """By how much each lane's first window is cut short, which staggers the ends of all others."""
        return np.arange(self.lanes, dtype=np.int64) * self.window // self.lanes

    def _find(self, epoch: int, places: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Shard and row at places in an epoch's row of shards."""
        if epoch not in self._sequences:
            if len(self._sequences) > 2:  # epochs follow each other
                self._sequences.clear()
            sequence = permute(np.arange(len(self.rows)), len(self.rows), mix_key(self.key, _SHARDS, epoch))
            counts = np.asarray(self.rows, np.int64)[sequence]
            self._sequences[epoch] = sequence, np.cumsum(counts) - counts
        sequence, first = self._sequences[epoch]
        slots = np.searchsorted(first, places, side="right") - 1
        return sequence[slots], places - first[slots]

    @cached_property
    def _sequences(self) -> dict[int, tuple[Int64Array, Int64Array]]:
        """For some epochs: their order of the shards, and the place of the first sample of each."""
        return {}


def _one_if_equal(sizes: Int64Array) -> int | Int64Array:
    """Nearly always all windows are whole, which makes the arithmetic cheaper."""
    return int(sizes[0]) if sizes.size and (sizes == sizes[0]).all() else sizes
