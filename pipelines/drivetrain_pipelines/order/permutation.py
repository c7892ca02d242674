"""Permutations and keys by integer arithmetic: the same on every machine, no table, any element in O(1).

Every parameter may be an array, so that a whole plan of batches, over many windows, costs one pass of numpy.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
UInt32Array = npt.NDArray[np.uint32]
UInt64Array = npt.NDArray[np.uint64]
Pair = tuple[UInt32Array, UInt32Array]

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

    A Feistel network over pairs ``(left, right)`` of a rectangle with about as many rows as columns, which is hardly
    larger than the size; the few values that fall behind it walk on (Black and Rogaway 2002).

    Args:
        positions: int64 ``[n]``, each in ``[0, size)``.
        sizes: one for all, or ``[n]``; at most 2**31.
        keys: likewise.
    """
    bounds = np.atleast_1d(np.asarray(sizes, np.int64))  # scalars would warn of the overflow that is wanted
    rows = np.ceil(np.sqrt(bounds)).astype(np.int64)
    rectangle = rows.astype(np.uint32), (-(-bounds // rows)).astype(np.uint32)
    keys = np.atleast_1d(np.asarray(keys, np.uint64))
    halves = keys.astype(np.uint32), (keys >> np.uint64(32)).astype(np.uint32)
    result = _encrypt(positions.astype(np.uint32), rectangle, halves)
    limit = bounds.astype(np.uint32)
    outside = np.flatnonzero(result >= limit)
    while outside.size:
        walked = _encrypt(result[outside], _pick(rectangle, outside), _pick(halves, outside))
        result[outside] = walked
        outside = outside[walked >= (limit if limit.size == 1 else limit[outside])]
    return result.astype(np.int64)


def _encrypt(values: UInt32Array, rectangle: Pair, keys: Pair) -> UInt32Array:
    left = values // rectangle[1]
    right = values - left * rectangle[1]
    for number in range(_ROUNDS // 2):
        left = _add(left, _scramble(right, keys[0], 2 * number), rectangle[0])
        right = _add(right, _scramble(left, keys[1], 2 * number + 1), rectangle[1])
    return left * rectangle[1] + right


def _scramble(values: UInt32Array, keys: UInt32Array, number: int) -> UInt32Array:
    """The finaliser lowbias32 (Wellons 2018)."""
    mixed = values + (keys + np.uint32(number * _GOLDEN & 0xFFFFFFFF))
    mixed ^= mixed >> np.uint32(15)
    mixed *= np.uint32(0x2C1B3C6D)
    mixed ^= mixed >> np.uint32(12)
    mixed *= np.uint32(0x297A2D39)
    mixed ^= mixed >> np.uint32(15)
    return mixed


def _add(values: UInt32Array, mixed: UInt32Array, modulus: UInt32Array) -> UInt32Array:
    """``values + mixed``, the latter scaled down to the modulus, modulo it."""
    share = mixed * modulus.astype(np.uint64)
    share >>= np.uint64(32)
    total: UInt32Array = share.astype(np.uint32)
    total += values
    total -= modulus * (total >= modulus)
    return total


def _pick(values: Pair, where: npt.NDArray[np.intp]) -> Pair:
    first, second = (value if value.size == 1 else value[where] for value in values)
    return first, second


def _mix(values: UInt64Array) -> UInt64Array:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
