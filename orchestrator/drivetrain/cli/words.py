"""Numbers and times in words."""

from __future__ import annotations

import time

_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def plural(count: int, noun: str) -> str:
    """Return a number with its noun: ``1 worker``, ``2 workers``, ``2,000 shards``."""
    ending = "" if count == 1 else "es" if noun.endswith(("s", "sh", "ch", "x")) else "s"
    return f"{count:,} {noun}{ending}"


def age(since: float) -> str:
    """Return how long ago a moment was, in its largest unit: ``3 d``, ``5 min``. Args: ``since``: see `time.time`."""
    seconds = max(0, round(time.time() - since))
    unit, size = next(((unit, size) for unit, size in _UNITS if seconds >= size), _UNITS[-1])
    return f"{seconds // size} {unit}"
