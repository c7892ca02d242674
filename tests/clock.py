"""A clock for tests."""

from __future__ import annotations

import time


class Clock:
    """A replacement for the module `time` in a module under test: every function returns ``now``."""

    sleep = staticmethod(time.sleep)

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def time(self) -> float:
        return self.now

    monotonic = perf_counter = time
