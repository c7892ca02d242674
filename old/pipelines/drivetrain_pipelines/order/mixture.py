"""The order over several sources, by weight, and the slices that ranks read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np

from drivetrain_pipelines.order.permutation import Int64Array, mix_key, mix_keys, permute
from drivetrain_pipelines.order.source_order import SourceOrder

_BLOCK = 4096  # positions over which the weights hold exactly; shuffling is cheapest for a power of four
_WEIGHT_SCALE = 1 << 32
_MIXTURE_KEY = 3  # purpose of the key


@dataclass(frozen=True)
class SampleOrder:
    """The global stream of samples: maps any position to its sample in O(1), identically on every rank.

    The sources share every block of 4096 positions by their weights, rounded so that after any number of blocks no
    source is a whole sample ahead or behind; inside a block they are shuffled. A source delivers its own samples in
    its own order, so no sample is left out or repeated within one of its epochs.

    Attributes:
        orders: order of each source; shards are numbered over all sources.
        bounds: cumulative weights of the sources, scaled to 2**32.
        key: key of the random numbers for the mixture.
    """

    orders: tuple[SourceOrder, ...]
    bounds: tuple[int, ...]
    key: int

    @classmethod
    def of(
        cls, rows: Sequence[Sequence[int]], weights: Sequence[float], seed: int, lanes: int, window: int
    ) -> SampleOrder:
        """Create the order over sources with these rows per shard.

        Args:
            weights: any positive numbers; only their ratios count.
            seed: seed of the job.
            lanes: upper bound; a source too small to give each lane a window has fewer.
        """
        orders = tuple(
            SourceOrder(tuple(counts), mix_key(seed, number), max(1, min(lanes, sum(counts) // window)), window)
            for number, counts in enumerate(rows)
        )
        exact = [Fraction(str(weight)) for weight in weights]
        bounds = [int(sum(exact[:number]) / sum(exact) * _WEIGHT_SCALE) for number in range(len(exact) + 1)]
        return cls(orders, tuple(bounds), mix_key(seed, _MIXTURE_KEY))

    @property
    def epoch(self) -> int:
        """Number of samples of all sources: the length of an epoch where there is one source."""
        return sum(order.size for order in self.orders)

    def locate(self, positions: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Return the shard (numbered over all sources) and row at each global position; int64 ``[n]``, in any order."""
        if len(self.orders) == 1:
            return self.orders[0].locate(positions)
        if not positions.size:
            return positions, positions
        numbers, counters = self.divide(positions)
        shards, rows = np.empty_like(positions), np.empty_like(positions)
        for number, order in enumerate(self.orders):
            chosen = numbers == number
            found, rows[chosen] = order.locate(counters[chosen])
            shards[chosen] = found + self._first_shard[number]
        return shards, rows

    def divide(self, positions: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Return the source at each position, and how many samples of that source precede it."""
        blocks, inverse = np.unique(positions // _BLOCK, return_inverse=True)
        keys, which = mix_keys(self.key, blocks), np.repeat(np.arange(len(blocks)), _BLOCK)
        slots = permute(np.tile(np.arange(_BLOCK), len(blocks)), _BLOCK, keys, which).reshape(-1, _BLOCK)
        numbers, counters = np.empty_like(slots), np.empty_like(slots)
        begin = np.zeros((len(blocks), 1), np.int64)
        for number in range(len(self.orders)):
            done = self._before(blocks, number + 1) - self._before(blocks, number)
            after = self._before(blocks + 1, number + 1) - self._before(blocks + 1, number)
            end = begin + (after - done)[:, None]
            own = (slots >= begin) & (slots < end)
            numbers[own] = number
            counters[own] = (np.cumsum(own, axis=1) - 1 + done[:, None])[own]
            begin = end
        within = positions % _BLOCK
        return numbers[inverse, within], counters[inverse, within]

    def positions(self, start: int, global_batch: int, rows: slice) -> Int64Array:
        """Return the global positions of some rows of the batch that begins at ``start``.

        Where the lanes divide the batch, its rows are arranged by lane, so that a rank reads the shards of few lanes;
        the samples of the batch as a whole are the same.
        """
        numbers = np.arange(rows.start, rows.stop, dtype=np.int64)
        lanes = self.orders[0].lanes
        if global_batch % lanes == 0:
            lane, turn = np.divmod(numbers, global_batch // lanes)
            numbers = turn * lanes + lane
        return start + numbers

    @cached_property
    def _first_shard(self) -> list[int]:
        counts = [len(order.rows) for order in self.orders]
        return [sum(counts[:number]) for number in range(len(counts))]

    def _before(self, blocks: Int64Array, number: int) -> Int64Array:
        """Count the first ``number`` sources' samples before these blocks, rounded down: ``positions * bound``."""
        high, low = np.divmod(blocks * _BLOCK, _WEIGHT_SCALE)  # so that no product overflows
        bound = self.bounds[number]
        return high * bound + ((low.astype(np.uint64) * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)
