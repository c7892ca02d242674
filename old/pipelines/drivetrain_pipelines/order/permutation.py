"""Permutations and keys by integer arithmetic: identical on every machine, without tables, any element in O(1).

Every parameter may be an array, so one numpy pass handles a whole plan of batches over many windows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
UInt32Array = npt.NDArray[np.uint32]
UInt64Array = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.integer[Any]]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_ROUNDS = 4


def mix_key(*parts: int) -> int:
    """Compute a 64-bit key from integers with the splitmix64 finaliser (Steele, Lea, Flood 2014)."""
    key = _GOLDEN
    for part in parts:
        key = ((key ^ (part & _MASK)) + _GOLDEN) & _MASK
        key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & _MASK
        key ^= key >> 31
    return key


def mix_keys(key: int, parts: Int64Array) -> UInt64Array:
    """Extend `mix_key` by one more part, for many parts at a time."""
    return _mix((np.uint64(key) ^ parts.astype(np.uint64)) + np.uint64(_GOLDEN))


def permute(
    positions: Integers,
    sizes: int | Int64Array,
    keys: int | UInt64Array,
    which: Integers | None = None,
) -> Int64Array:
    """Apply to each position the permutation of ``range(size)`` that a key selects.

    A Feistel network over pairs ``(left, right)`` of a rectangle with about as many rows as columns, which is hardly
    larger than the size; the few values outside the size are permuted again (cycle walking, Black and Rogaway 2002).

    Args:
        positions: integers ``[n]``, each below the size of its permutation.
        sizes: one for all, or ``[permutations]``; at most 2**31.
        keys: one for all, or ``[permutations]``.
        which: index of each position's permutation, ``[n]``, where there are several.
    """
    bounds = np.atleast_1d(np.asarray(sizes, np.int64))  # scalars would warn about the intended overflow
    names = np.atleast_1d(np.asarray(keys, np.uint64))
    rows = np.ceil(np.sqrt(bounds)).astype(np.int64)
    parameters = (rows, -(-bounds // rows), names, names >> np.uint64(32), bounds)
    *network, limits = (_spread(values.astype(np.uint32), which) for values in parameters)
    result = _encrypt(positions.astype(np.uint32), *network)
    outside = np.flatnonzero(result >= limits)
    while outside.size:
        walked = _encrypt(result[outside], *(_pick(values, outside) for values in network))
        result[outside] = walked
        outside = outside[walked >= _pick(limits, outside)]
    return result.astype(np.int64)


def _spread(values: UInt32Array, which: Integers | None) -> UInt32Array:
    """Return the value for each position, or a single one where all are equal, which makes the arithmetic cheaper."""
    return values[:1] if which is None or (values == values[0]).all() else values.take(which)


def _pick(values: UInt32Array, where: npt.NDArray[np.intp]) -> UInt32Array:
    return values if values.size == 1 else values[where]


def _encrypt(
    values: UInt32Array, rows: UInt32Array, columns: UInt32Array, low: UInt32Array, high: UInt32Array
) -> UInt32Array:
    left = values // columns
    right = values - left * columns
    for number in range(0, _ROUNDS, 2):
        left = _add(left, _scramble(right, low, number), rows)
        right = _add(right, _scramble(left, high, number + 1), columns)
    return left * columns + right


def _scramble(values: UInt32Array, keys: UInt32Array, number: int) -> UInt32Array:
    """Apply the finaliser lowbias32 (Wellons 2018)."""
    mixed = values + (keys + np.uint32(number * _GOLDEN & 0xFFFFFFFF))
    mixed ^= mixed >> np.uint32(15)
    mixed *= np.uint32(0x2C1B3C6D)
    mixed ^= mixed >> np.uint32(12)
    mixed *= np.uint32(0x297A2D39)
    mixed ^= mixed >> np.uint32(15)
    return mixed


def _add(values: UInt32Array, mixed: UInt32Array, modulus: UInt32Array) -> UInt32Array:
    """Add ``mixed``, scaled down to the modulus, to ``values`` modulo the modulus."""
    share = mixed * modulus.astype(np.uint64)
    share >>= np.uint64(32)
    total = share.astype(np.uint32)
    total += values
    reduced: UInt32Array = np.minimum(total, total - modulus)  # below the modulus the difference wraps around
    return reduced


def _mix(values: UInt64Array) -> UInt64Array:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
