"""Several streams in one, by weight, and the slices of it that ranks read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np

from drivetrain_pipelines.order.permutation import Int64Array, mix_key, mix_keys, permute
from drivetrain_pipelines.order.streams import StreamOrder

_BLOCK = 4096  # positions over which the weights hold exactly; a power of four shuffles cheapest
_WHOLE = 1 << 32
_MIXTURE = 3  # what a key is for


@dataclass(frozen=True)
class SampleOrder:
    """The global stream: a position is a sample, whoever asks, in O(1).

    The streams share every block of 4096 positions by their weights, rounded so that after any number of blocks no
    stream is a whole sample ahead or behind; inside a block they are shuffled. A stream delivers its own samples in
    its own order, so no sample is left out or repeated within one of its epochs.

    Attributes:
        streams: with the shards of all of them numbered through.
        bounds: the weights of the first 0, 1, 2... streams together, in parts of 2**32.
        key: names the randomness of the mixing.
    """

    streams: tuple[StreamOrder, ...]
    bounds: tuple[int, ...]
    key: int

    @classmethod
    def of(
        cls, rows: Sequence[Sequence[int]], weights: Sequence[float], seed: int, lanes: int, window: int
    ) -> SampleOrder:
        """The order over streams with these rows per shard.

        Args:
            weights: any positive numbers; only their ratios count.
            seed: the job's.
            lanes: at most; a stream too small to give each lane a window has fewer.
        """
        streams = tuple(
            StreamOrder(tuple(counts), mix_key(seed, number), max(1, min(lanes, sum(counts) // window)), window)
            for number, counts in enumerate(rows)
        )
        exact = [Fraction(str(weight)) for weight in weights]
        bounds = [int(sum(exact[:number]) / sum(exact) * _WHOLE) for number in range(len(exact) + 1)]
        return cls(streams, tuple(bounds), mix_key(seed, _MIXTURE))

    @property
    def epoch(self) -> int:
        """Samples of all streams together: the length of an epoch where there is one stream."""
        return sum(stream.size for stream in self.streams)

    def locate(self, positions: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Shard (numbered over all streams) and row at each global position; int64 ``[n]``, any order."""
        if len(self.streams) == 1:
            return self.streams[0].locate(positions)
        if not positions.size:
            return positions, positions
        numbers, counters = self.divide(positions)
        shards, rows = np.empty_like(positions), np.empty_like(positions)
        for number, stream in enumerate(self.streams):
            chosen = numbers == number
            found, rows[chosen] = stream.locate(counters[chosen])
            shards[chosen] = found + self._first_shard[number]
        return shards, rows

    def divide(self, positions: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Stream at each position, and how many of that stream's samples stand before it."""
        blocks, inverse = np.unique(positions // _BLOCK, return_inverse=True)
        keys, which = mix_keys(self.key, blocks), np.repeat(np.arange(len(blocks)), _BLOCK)
        slots = permute(np.tile(np.arange(_BLOCK), len(blocks)), _BLOCK, keys, which).reshape(-1, _BLOCK)
        numbers, counters = np.empty_like(slots), np.empty_like(slots)
        begin = np.zeros((len(blocks), 1), np.int64)
        for number in range(len(self.streams)):
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
        """Global positions of some rows of the batch that begins at ``start``.

        Where the lanes divide the batch, its rows are put lane by lane, so that a rank reads the shards of few lanes;
        the samples of the batch as a whole are the same.
        """
        numbers = np.arange(rows.start, rows.stop, dtype=np.int64)
        lanes = self.streams[0].lanes
        if global_batch % lanes == 0:
            lane, turn = np.divmod(numbers, global_batch // lanes)
            numbers = turn * lanes + lane
        return start + numbers

    @cached_property
    def _first_shard(self) -> list[int]:
        counts = [len(stream.rows) for stream in self.streams]
        return [sum(counts[:number]) for number in range(len(counts))]

    def _before(self, blocks: Int64Array, number: int) -> Int64Array:
        """Samples of the first ``number`` streams in all blocks before these, rounded down: ``positions * bound``."""
        high, low = np.divmod(blocks * _BLOCK, _WHOLE)  # so that no product overflows
        bound = self.bounds[number]
        return high * bound + ((low.astype(np.uint64) * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)
