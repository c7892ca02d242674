"""A rank's connection to its agent."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from drivetrain_workers.protocol.messages import RankTask, receive, send
from drivetrain_workers.rank.pulse import Pulse


class AgentLink:
    """This rank's connection to its agent: events and its pulse out, the request to stop in.

    Without an agent there is no rank.
    """

    def __init__(self, task: RankTask) -> None:
        self._identity = {"rank": task.rank, "generation": task.generation.number}
        self._connection = task.endpoint.connect()
        self._lock = threading.Lock()  # the checkpoint thread and the pulse report too
        self.stop_asked = threading.Event()
        threading.Thread(target=self._listen, name="agent-link", daemon=True).start()
        self._pulse = Pulse(lambda beat: self.report("beat", **vars(beat)))

    def enter(self, phase: str, step: int) -> None:
        """The main thread begins a phase; one that takes far longer than ever before counts as a hang."""
        self._pulse.enter(phase, step)

    def report(self, event: str, /, **fields: Any) -> None:
        """Send one event."""
        with self._lock:
            send(self._connection, {"type": event, "time": time.time(), **self._identity, **fields})

    def _listen(self) -> None:
        try:
            while True:
                if receive(self._connection)["type"] == "stop":
                    self.stop_asked.set()
        except (EOFError, OSError):
            os._exit(1)  # the agent is gone; whatever the main thread is blocked in ends with the process
