"""Which sample stands at which position of the global stream.

Position to sample is integer arithmetic only: no random stream to carry, nothing that depends on the world size, any
position found in O(1). The whole state of a stream is the number of samples consumed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]

_MASK = (1 << 64) - 1
_ROUNDS = 6


def mix_key(*parts: int) -> int:
    """A 64-bit key from integers, by the splitmix64 finaliser (Steele, Lea, Flood 2014) folded over them."""
    key = 0x9E3779B97F4A7C15
    for part in parts:
        key = ((key ^ (part & _MASK)) + 0x9E3779B97F4A7C15) & _MASK
        key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & _MASK
        key ^= key >> 31
    return key


def _mix(values: UInt64Array) -> UInt64Array:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def permute(positions: Int64Array, size: int, key: int) -> Int64Array:
    """Apply the permutation of ``range(size)`` that ``key`` names to each of ``positions``.

    A Feistel network over the next even power of two, walked until the value falls below ``size`` (cycle walking:
    Black and Rogaway 2002), so one position costs O(1) and needs no table.

    Args:
        positions: int64, any shape, each in ``[0, size)``.
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    half, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    round_keys = [np.uint64(mix_key(key, i)) for i in range(_ROUNDS)]

    def encrypt(values: UInt64Array) -> UInt64Array:
        left, right = values >> half, values & mask
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right + round_key) & mask)
        return (left << half) | right

    result = encrypt(positions.astype(np.uint64))
    outside = result >= np.uint64(size)
    while outside.any():
        result[outside] = encrypt(result[outside])
        outside = result >= np.uint64(size)
    return result.astype(np.int64)


@dataclass(frozen=True)
class ShuffledOrder:
    """Endless stream of epochs over ``size`` samples, each epoch another permutation.

    Args:
        size: samples in the dataset split.
        seed: the job's seed.
    """

    size: int
    seed: int

    def samples(self, start: int, stop: int) -> Int64Array:
        """Sample numbers at global positions ``start .. stop``; int64, shape ``[stop - start]``."""
        positions = np.arange(start, stop, dtype=np.int64)
        epochs, offsets = np.divmod(positions, self.size)
        samples = np.empty_like(positions)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            samples[chosen] = permute(offsets[chosen], self.size, mix_key(self.seed, int(epoch)))
        return samples
