"""Heartbeats of a rank: reports twice a second to its agent what the main thread is doing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from drivetrain_workers.protocol.events import Beat
from drivetrain_workers.protocol.messages import HEARTBEAT_INTERVAL_S


class HeartbeatThread:
    """Reports in a thread which phase the main thread is in.

    Args:
        report: sends a heartbeat.
    """

    def __init__(self, report: Callable[[Beat], None]) -> None:
        self._report = report
        self._now = (0, "start", 0, time.monotonic())
        self._longest: dict[str, float] = {}
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def enter(self, phase: str, step: int) -> None:
        """Begin a phase of the main thread, and end the previous one."""
        _, before, count, since = self._now
        now = time.monotonic()
        self._longest[before] = max(self._longest.get(before, 0.0), now - since)
        self._now = (step, phase, count + 1, now)

    def _beat(self) -> None:
        with suppress(OSError):  # without its agent the process ends anyway
            while True:
                step, phase, count, since = self._now
                self._report(Beat(step, phase, count, time.monotonic() - since, self._longest.get(phase, 0.0)))
                time.sleep(HEARTBEAT_INTERVAL_S)
