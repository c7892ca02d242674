"""A rank's connection to its agent."""

from __future__ import annotations

import os
import threading

from drivetrain_workers.protocol.events import AgentEvent, Heartbeat
from drivetrain_workers.protocol.messages import RankTask, StopTraining, receive, send
from drivetrain_workers.rank.heartbeat import HeartbeatThread


class AgentLink:
    """This rank's connection to its agent: sends events and heartbeats, receives the request to stop.

    The rank exits when the connection is lost.
    """

    def __init__(self, task: RankTask) -> None:
        self._connection = task.endpoint.connect()
        self._lock = threading.Lock()  # the checkpoint thread and the heartbeat thread report too
        self.stop_requested = threading.Event()
        threading.Thread(target=self._listen, name="agent-link", daemon=True).start()
        self._heartbeat = HeartbeatThread(lambda beat: self.report(Heartbeat(task.id, beat)))

    def enter(self, phase: str, step: int) -> None:
        """Begin a phase of the main thread; one that takes far longer than before counts as a hang."""
        self._heartbeat.enter(phase, step)

    def report(self, event: AgentEvent) -> None:
        """Send one event."""
        with self._lock:
            send(self._connection, event)

    def _listen(self) -> None:
        try:
            while True:
                if isinstance(receive(self._connection), StopTraining):
                    self.stop_requested.set()
        except (EOFError, OSError):
            os._exit(1)  # the agent is gone; the main thread may be blocked, so end the process
