"""Pairs of sentences as texts: the English one, a mark, the Spanish one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

MARK = "<|to|>"
_LONGEST = 40  # characters of a sentence; what is longer would be cut


def pairs(path: Path) -> Iterator[dict[str, object]]:
    """A record for each line ``English<TAB>Spanish``; several translations of a sentence are several records."""
    for line in path.read_text("utf-8").splitlines():
        english, spanish, *_ = line.split("\t")
        if max(len(english), len(spanish)) <= _LONGEST:
            yield {"text": f"{english}{MARK}{spanish}", "english": english}
