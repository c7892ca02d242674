"""The order of one source's samples: epochs, lanes, windows.

An epoch arranges the shards in random order. *Lanes* divide that sequence of samples into equal ranges; position
``q`` of the epoch belongs to lane ``q mod lanes``. Inside its range a lane shuffles one *window* of samples after the
other. At any time a lane therefore needs the few shards of one window, however large the dataset; the windows of
different lanes end at different times, so the demand for new shards is even. Lanes do not depend on the world size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from drivetrain_pipelines.order.permutation import Int64Array, Integers, UInt64Array, mix_key, mix_keys, permute

_SHARDS_KEY, _WINDOW_KEY = 1, 2  # purposes of the keys
_MAX_WINDOWS_PER_SAMPLE = 4  # windows per sample; beyond it only the windows in use are computed


@dataclass(frozen=True)
class SourceOrder:
    """Endless epochs over the samples of some shards, each sample once per epoch.

    Attributes:
        rows: samples in each shard.
        key: key of this source's random numbers; derived from the job's seed.
        lanes: ranges that are read in parallel.
        window: samples that are shuffled together; ideally a power of four.
    """

    rows: tuple[int, ...]
    key: int
    lanes: int
    window: int

    @cached_property
    def size(self) -> int:
        """Number of samples per epoch."""
        return sum(self.rows)

    def locate(self, counters: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Return shard and row of the samples with the consecutive numbers ``counters`` of this source; int64 ``[n]``.

        The closer the numbers are to each other, the fewer windows have to be computed.
        """
        if not counters.size:
            return counters, counters
        first, last = int(counters.min()) // self.size, int(counters.max()) // self.size
        if first == last:  # the common case
            return self._find(first, self._shuffle(first, counters - first * self.size))
        epochs = counters // self.size
        shards, rows = np.empty_like(counters), np.empty_like(counters)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            offsets = counters[chosen] - epoch * self.size
            shards[chosen], rows[chosen] = self._find(epoch, self._shuffle(epoch, offsets))
        return shards, rows

    def _shuffle(self, epoch: int, offsets: Int64Array) -> Int64Array:
        """Map offsets in the epoch to places in its sequence of shards by lane, window and place within the window."""
        # Divisions of 32-bit numbers are several times as fast.
        narrow: Integers = offsets.astype(np.uint32) if self.size + self.window < 1 << 32 else offsets
        step = narrow // self.lanes
        lane = narrow - step * self.lanes
        number = self._first_cut.take(lane).astype(step.dtype)
        number += step
        number //= self.window
        lowest = int(number.min())
        count = int(number.max()) - lowest + 1
        if count * self.lanes <= _MAX_WINDOWS_PER_SAMPLE * offsets.size:
            lanes = np.repeat(np.arange(self.lanes, dtype=np.int64), count)
            numbers = np.tile(np.arange(lowest, lowest + count, dtype=np.int64), self.lanes)
            slot = (lane * count + number - lowest).astype(np.intp)
        else:  # far apart, or windows of few samples: compute only the windows in use
            named, slot = np.unique(lane * np.int64(lowest + count) + number, return_inverse=True)
            lanes, numbers = np.divmod(named, lowest + count)
        begin, size, place, key = self._windows(epoch, lanes, numbers)
        places = permute(step - begin.take(slot), size, key, slot)
        places += place.take(slot)
        return places

    def _windows(
        self, epoch: int, lane: Int64Array, number: Int64Array
    ) -> tuple[Int64Array, Int64Array, Int64Array, UInt64Array]:
        """Describe windows, each given by its lane and its number in the lane.

        Returns:
            For each: its begin within the lane, its size, the place of its first sample in the epoch, and its key.
        """
        uncut = number * self.window - self._first_cut[lane]
        begin = np.maximum(uncut, 0)
        size = np.minimum(uncut + self.window, self._lane_size[lane]) - begin
        np.maximum(size, 1, out=size)  # after the end of its lane a window is empty and not used
        windows_per_lane = self.size // self.window + 2
        key = mix_keys(mix_key(self.key, _WINDOW_KEY), (epoch * self.lanes + lane) * windows_per_lane + number)
        return begin, size, self._lane_begin[lane] + begin, key

    @cached_property
    def _lane_size(self) -> Int64Array:
        """Number of samples of each lane. The first lanes have one more where the lanes do not divide the epoch."""
        return np.array([(self.size + self.lanes - 1 - lane) // self.lanes for lane in range(self.lanes)], np.int64)

    @cached_property
    def _lane_begin(self) -> Int64Array:
        """Place of the first sample of each lane."""
        return np.cumsum(self._lane_size) - self._lane_size

    @cached_property
    def _first_cut(self) -> Int64Array:
        """Number of samples by which each lane's first window is shortened, which staggers the ends of all others."""
        return np.arange(self.lanes, dtype=np.int64) * self.window // self.lanes

    def _find(self, epoch: int, places: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Return shard and row at places in an epoch's sequence of shards."""
        if epoch not in self._sequences:
            if len(self._sequences) > 2:  # epochs follow each other, so old ones are not needed
                self._sequences.clear()
            sequence = permute(np.arange(len(self.rows)), len(self.rows), mix_key(self.key, _SHARDS_KEY, epoch))
            counts = np.asarray(self.rows, np.int64)[sequence]
            self._sequences[epoch] = sequence, np.cumsum(counts) - counts
        sequence, first = self._sequences[epoch]
        slots = np.searchsorted(first, places, side="right") - 1
        return sequence.take(slots), places - first.take(slots)

    @cached_property
    def _sequences(self) -> dict[int, tuple[Int64Array, Int64Array]]:
        """For recent epochs: the order of the shards, and the place of the first sample of each."""
        return {}
