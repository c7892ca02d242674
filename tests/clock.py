"""A clock that a test sets."""

from __future__ import annotations

import time


class Clock:
    """Put it where a module has imported `time`: it shows ``now``, whichever clock is asked for."""

    sleep = staticmethod(time.sleep)

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def time(self) -> float:
        return self.now

    monotonic = perf_counter = time
