"""The numbered list of events that an agent keeps for the coordinator."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from itertools import takewhile

from drivetrain_workers.protocol.events import AgentEvent, NodeMeasured, StepDone

_MAX_EVENTS = 10_000  # for a restarted coordinator; the events before these are in its records
_ROUTINE_EVENTS = (StepDone, NodeMeasured)  # read in batches: a call per event would slow down ranks with short steps
_BATCH_DELAY_S = 1.0


@dataclass(frozen=True)
class LoggedEvent:
    """An event and its number. Numbers increase without gaps over the life of the agent."""

    number: int
    event: AgentEvent


class EventLog:
    """Events of one agent, read by long polls. Thread-safe."""

    def __init__(self) -> None:
        self._events: deque[LoggedEvent] = deque(maxlen=_MAX_EVENTS)
        self._next = 0
        self._news = threading.Condition()

    def append(self, event: AgentEvent) -> None:
        """Add an event and wake the waiting readers."""
        with self._news:
            self._events.append(LoggedEvent(self._next, event))
            self._next += 1
            self._news.notify_all()

    def read(self, since: int, timeout_s: float) -> list[LoggedEvent]:
        """Return the events from number ``since`` on; wait up to ``timeout_s`` for the first.

        Where all are routine events, wait briefly for more.
        """
        with self._news:
            if self._news.wait_for(lambda: self._next > since, timeout_s):
                self._news.wait_for(lambda: self._is_urgent(since), min(_BATCH_DELAY_S, timeout_s))
            return self._from(since)

    def _is_urgent(self, since: int) -> bool:
        return any(not isinstance(logged.event, _ROUTINE_EVENTS) for logged in self._from(since))

    def _from(self, number: int) -> list[LoggedEvent]:
        newer = takewhile(lambda logged: logged.number >= number, reversed(self._events))
        return list(newer)[::-1]
