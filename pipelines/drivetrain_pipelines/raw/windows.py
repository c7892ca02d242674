"""Running text in windows of a fixed size, so that a long file is encoded in parallel as if it were encoded whole.

A window ends at the same byte of a file however the file is divided into chunks. It carries the text on both sides of
it, its margins: where a token ends depends on the text nearby, and `TextEncoder.window` proves that it depends on
nothing farther away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

WINDOW_BYTES = 1 << 17
MARGIN = 1024  # characters on each side; more where few characters differ, as in a long line of dashes
_WIDEST = 16  # times the margin
_BOM = "\ufeff"


@dataclass(frozen=True)
class Window:
    """A piece of running text between its margins; a margin is empty where the text begins or ends."""

    before: str
    text: str
    after: str


@dataclass(frozen=True)
class BadWindow:
    """A window that is not UTF-8.

    Attributes:
        byte: position of the first wrong byte in the file.
    """

    byte: int
    problem: str


def windows(
    read: Callable[[int, int], bytes],
    size: int,
    start: int = 0,
    stop: int | None = None,
    window: int = WINDOW_BYTES,
    margin: int = MARGIN,
) -> Iterator[Window | BadWindow]:
    """Yield the windows that begin in a range of a text, in order.

    Args:
        read: returns the bytes between two positions.
        size: number of bytes of the text.
        start, stop: the range, in bytes: multiples of ``window``, or the end of the text.
        margin: smallest number of characters of a margin.
    """
    stop = size if stop is None else stop
    reach = 4 * margin * _WIDEST
    for begin in range(start, stop, window):
        first, last = _character_start(read, begin, size), _character_start(read, min(begin + window, size), size)
        content = read(first, last)
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            yield BadWindow(first + error.start, f"the byte 0x{content[error.start]:02x} is not UTF-8")
            continue
        if first == 0:
            text = text.removeprefix(_BOM)
        before = _decodable_end(read(max(0, first - reach), first))
        after = _decodable_start(read(last, min(size, last + reach)))
        yield Window(before[len(before) - width_before(before, margin) :], text, after[: width_after(after, margin)])


def width_after(text: str, margin: int) -> int:
    """Return the width of the margin at the start of ``text``: wide enough that many of its characters differ."""
    width = margin
    while width < min(len(text), margin * _WIDEST) and _changes(text[:width]) < margin // 2:
        width *= 2
    return min(width, len(text))


def width_before(text: str, margin: int) -> int:
    """Return the width of the margin at the end of ``text``, see `width_after`."""
    width = margin
    while width < min(len(text), margin * _WIDEST) and _changes(text[len(text) - width :]) < margin // 2:
        width *= 2
    return min(width, len(text))


def _changes(text: str) -> int:
    """Count the neighbors that differ."""
    return int(np.count_nonzero(np.diff(np.frombuffer(text.encode("utf-32-le"), np.uint32))))


def _character_start(read: Callable[[int, int], bytes], position: int, size: int) -> int:
    """Return the first position from here on where a character of UTF-8 begins."""
    following = read(position, min(position + 3, size))
    return position + next((n for n, byte in enumerate(following) if byte & 0xC0 != 0x80), len(following))


def _decodable_start(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        return content[: error.start].decode("utf-8")


def _decodable_end(content: bytes) -> str:
    """Return the text after the last byte that is not UTF-8."""
    lossy = content.decode("utf-8", errors="replace")
    if "\ufffd" not in lossy:
        return lossy
    while True:
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            content = content[error.end :]
