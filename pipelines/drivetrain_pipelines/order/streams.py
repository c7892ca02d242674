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

from drivetrain_pipelines.order.permutation import Int64Array, Integers, UInt64Array, mix_key, mix_keys, permute

_SHARDS, _WINDOW = 1, 2  # what a key is for
_MANY = 4  # windows for each sample: more of them are not looked at unasked


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
        """Shard and row of the samples that this stream delivers as its numbers ``counters``; int64 ``[n]``.

        The nearer they lie to each other, the fewer windows have to be looked at.
        """
        if not counters.size:
            return counters, counters
        first, last = int(counters.min()) // self.size, int(counters.max()) // self.size
        if first == last:  # nearly always
            return self._find(first, self._shuffle(first, counters - first * self.size))
        epochs = counters // self.size
        shards, rows = np.empty_like(counters), np.empty_like(counters)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            offsets = counters[chosen] - epoch * self.size
            shards[chosen], rows[chosen] = self._find(epoch, self._shuffle(epoch, offsets))
        return shards, rows

    def _shuffle(self, epoch: int, offsets: Int64Array) -> Int64Array:
        """Places in the epoch's row of shards: each offset's lane, window, and place within the window."""
        # Divisions of 32-bit numbers are several times as fast.
        narrow: Integers = offsets.astype(np.uint32) if self.size + self.window < 1 << 32 else offsets
        step = narrow // self.lanes
        lane = narrow - step * self.lanes
        number = self._first_cut.take(lane).astype(step.dtype)
        number += step
        number //= self.window
        lowest = int(number.min())
        count = int(number.max()) - lowest + 1
        if count * self.lanes <= _MANY * offsets.size:
            lanes = np.repeat(np.arange(self.lanes, dtype=np.int64), count)
            numbers = np.tile(np.arange(lowest, lowest + count, dtype=np.int64), self.lanes)
            slot = (lane * count + number - lowest).astype(np.intp)
        else:  # far apart, or windows of few samples: only those that are asked for
            named, slot = np.unique(lane * np.int64(lowest + count) + number, return_inverse=True)
            lanes, numbers = np.divmod(named, lowest + count)
        begin, size, place, key = self._windows(epoch, lanes, numbers)
        places = permute(step - begin.take(slot), size, key, slot)
        places += place.take(slot)
        return places

    def _windows(
        self, epoch: int, lane: Int64Array, number: Int64Array
    ) -> tuple[Int64Array, Int64Array, Int64Array, UInt64Array]:
        """Some windows, each by its lane and its number there.

        Returns:
            For each: its begin within the lane, its size, the place of its first sample in the epoch, and its key.
        """
        uncut = number * self.window - self._first_cut[lane]
        begin = np.maximum(uncut, 0)
        size = np.minimum(uncut + self.window, self._lane_size[lane]) - begin
        np.maximum(size, 1, out=size)  # behind the end of its lane a window is empty, and nobody asks for it
        windows_per_lane = self.size // self.window + 2
        key = mix_keys(mix_key(self.key, _WINDOW), (epoch * self.lanes + lane) * windows_per_lane + number)
        return begin, size, self._lane_begin[lane] + begin, key

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
        return sequence.take(slots), places - first.take(slots)

    @cached_property
    def _sequences(self) -> dict[int, tuple[Int64Array, Int64Array]]:
        """For some epochs: their order of the shards, and the place of the first sample of each."""
        return {}
