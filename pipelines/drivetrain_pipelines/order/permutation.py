"""Permutations and keys by integer arithmetic: the same on every machine, no table, any element in O(1).

Every parameter may be an array, so that a whole plan of batches, over many windows, costs one pass of numpy.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_ROUNDS = 4


def mix_key(*parts: int) -> int:
    """A 64-bit key from integers, by the splitmix64 finaliser (Steele, Lea, Flood 2014) folded over them."""
    key = _GOLDEN
    for part in parts:
        key = ((key ^ (part & _MASK)) + _GOLDEN) & _MASK
        key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & _MASK
        key ^= key >> 31
    return key


def mix_keys(key: int, parts: Int64Array) -> UInt64Array:
    """`mix_key` continued with one more part, for many at once."""
    return _mix((np.uint64(key) ^ parts.astype(np.uint64)) + np.uint64(_GOLDEN))


def permute(positions: Int64Array, sizes: int | Int64Array, keys: int | UInt64Array) -> Int64Array:
    """Apply to each position the permutation of ``range(size)`` that its key names.

    A Feistel network over the next even power of two, walked until the value falls below the size (cycle walking:
    Black and Rogaway 2002).

    Args:
        positions: int64 ``[n]``, each in ``[0, size)``.
        sizes: one for all, or ``[n]``.
        keys: likewise.
    """
    bounds = np.asarray(sizes, np.uint64)
    half = _half_bits(np.asarray(sizes, np.int64))
    keys = np.asarray(keys, np.uint64)
    result = _encrypt(positions.astype(np.uint64), half, keys)
    outside = np.flatnonzero(result >= bounds)
    while outside.size:
        walked = _encrypt(result[outside], _pick(half, outside), _pick(keys, outside))
        result[outside] = walked
        outside = outside[walked >= _pick(bounds, outside)]
    return result.astype(np.int64)


def _encrypt(values: UInt64Array, half: UInt64Array, keys: UInt64Array) -> UInt64Array:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for number in range(_ROUNDS):
        left, right = right, left ^ (_mix(right + keys + np.uint64(number * _GOLDEN & _MASK)) & mask)
    return (left << half) | right


def _half_bits(sizes: Int64Array) -> UInt64Array:
    """Half of the bits, rounded up, that hold every value below the size; exact where a float has no digits left."""
    bits = np.frexp(np.maximum(sizes - 1, 1).astype(np.float64))[1].astype(np.int64)
    bits += (np.int64(1) << np.minimum(bits, 62)) < sizes  # a float that was rounded down at a power of two
    return ((bits + 1) // 2).astype(np.uint64)


def _mix(values: UInt64Array) -> UInt64Array:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _pick(values: UInt64Array, where: npt.NDArray[np.intp]) -> UInt64Array:
    return values if values.ndim == 0 else values[where]
