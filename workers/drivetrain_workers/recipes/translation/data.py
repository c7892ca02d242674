"""Pairs of sentences as texts: the English one, a separator, the Spanish one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

SEPARATOR = "<|to|>"
_MAX_CHARACTERS = 40  # characters of a sentence; longer ones would be truncated


def pairs(path: Path) -> Iterator[dict[str, object]]:
    """Yield a record for each line ``English<TAB>Spanish``; several translations of a sentence are several records."""
    for line in path.read_text("utf-8").splitlines():
        english, spanish, *_ = line.split("\t")
        if max(len(english), len(spanish)) <= _MAX_CHARACTERS:
            yield {"text": f"{english}{SEPARATOR}{spanish}", "english": english}
