"""Packing documents into samples of equal length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def concatenate(tokens: npt.NDArray[Any], width: int) -> npt.NDArray[Any]:
    """Cut one long row of tokens into samples ``[n, width]``, without the tokens at the end that do not fill one."""
    return tokens[: len(tokens) // width * width].reshape(-1, width)


def pieces_of(documents: Sequence[npt.NDArray[Any]], width: int) -> list[npt.NDArray[Any]]:
    """Cut documents that are longer than a sample; the others stay whole."""
    return [document[at : at + width] for document in documents for at in range(0, len(document), width)]


def fit(
    pieces: Sequence[npt.NDArray[Any]], width: int, padding: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pack whole pieces of at most ``width`` tokens into samples by best fit decreasing.

    Returns:
        Tokens ``[n, width]``, and for each token the number of its piece within the sample: 1, 2, ...; 0 is padding.
    """
    packs = best_fit_decreasing([len(piece) for piece in pieces], width)
    tokens = np.full((len(packs), width), padding, np.int64)
    segments = np.zeros((len(packs), width), np.int64)
    for row, pack in enumerate(packs):
        at = 0
        for number, piece in enumerate(sorted(pack), start=1):
            end = at + len(pieces[piece])
            tokens[row, at:end], segments[row, at:end] = pieces[piece], number
            at = end
    return tokens, segments


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Assign items to bins: the longest item first, each to the fullest bin that has room (Johnson 1973).

    The free room of all bins is one integer used as a set of bits, so finding the fullest bin is one shift.
    """
    bins: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0
    for item in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        length = lengths[item]
        if enough := rooms >> length:
            room = length + ((enough & -enough).bit_length() - 1)
            number = with_room[room].pop()
            if not with_room[room]:
                rooms &= ~(1 << room)
            bins[number].append(item)
            room -= length
        else:
            number, room = len(bins), capacity - length
            bins.append([item])
        if room:
            with_room[room].append(number)
            rooms |= 1 << room
    return bins
