"""What the parts of a run's loop share: its state, its figures, its facts, and the queue of what is to be decided."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from drivetrain.errors import StoreUnavailableError
from drivetrain.runs import events as ev
from drivetrain.runs import states as st
from drivetrain.runs.store import RunRecord, RunStore
from drivetrain.runs.view import RunView

_log = logging.getLogger(__name__)

Work = Callable[[], Iterable[ev.Event]]  # done in the loop's thread; the loop decides on each event as it comes


class Inbox(Protocol):
    """A queue; `queue.SimpleQueue` is one."""

    def put(self, item: ev.Event | Work) -> None:
        """Add an item."""

    def get(self, block: bool = True, timeout: float | None = None) -> ev.Event | Work:
        """Remove and return the oldest item. Raises `queue.Empty` after ``timeout`` seconds without one."""


class LiveRun:
    """One run while its loop looks after it. Only the loop's thread changes the state.

    Args:
        record: of the run.
        store: durable records.
        energy_j: that the run has taken since it was submitted or resumed.
        inbox: what is to be decided.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        record: RunRecord,
        store: RunStore,
        energy_j: float = 0.0,
        inbox: Inbox | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.id, self.created, self.state, self._store = record.id, record.created, record.state, store
        self.clock = clock
        self.inbox: Inbox = inbox or queue.SimpleQueue()
        self.view = RunView(record.id, facts=record.facts, pids={"coordinator": os.getpid()}, energy_j=energy_j)
        self._changed = threading.Condition()

    @property
    def generation(self) -> int:
        """Number of the newest generation."""
        return self.state.progress.generation

    def post(self, item: ev.Event | Work) -> None:
        """Have the loop decide on an event, or do some work in its thread."""
        self.inbox.put(item)

    def save(self, state: st.State, why: str) -> None:
        """Store a transition; wait for the database while it is away."""
        self._store_patiently(lambda: self._store.save(self.id, state, why))

    def update_facts(self, **changes: Any) -> None:
        """Store what is known of the run, and show it; wait for the database while it is away."""
        self._store_patiently(lambda: self._store.update_facts(self.id, **changes))
        self.show_facts(**changes)

    def show_facts(self, **changes: Any) -> None:
        """Show what is known of the run, without storing it."""
        with self._changed:
            self.view.facts = self.view.facts.updated(**changes)

    def show(self, **figures: Any) -> None:
        """Publish the figures that are given, and those that were changed in the view."""
        with self._changed:
            for name, value in figures.items():
                setattr(self.view, name, value)
            self.view.phase = self.state.phase
            self.view.generation = self.generation
            self.view.restarts = self.state.progress.restarts
            self.view.version += 1
            self._changed.notify_all()

    def show_waiting(self, why: str) -> None:
        """Show why the scheduler has no allocation for the run yet."""
        if why != self.view.waiting:
            self.show(waiting=why)

    def wait_for_view(self, known_version: int, timeout_s: float) -> RunView:
        """Return the run's figures; wait until they are newer than ``known_version``, at most ``timeout_s``."""
        with self._changed:
            self._changed.wait_for(lambda: self.view.version > known_version, timeout_s)
            return self.view.copy()

    def history(self) -> list[tuple[float, str, st.State]]:
        """Return every transition; see `RunStore.history`."""
        return self._store.history(self.id)

    def _store_patiently(self, store: Callable[[], None]) -> None:
        """Nothing can be decided without the database; training continues, and the run says what it waits for."""
        while True:
            try:
                store()
            except StoreUnavailableError as error:  # which has been tried for minutes
                _log.warning("%s: %s", self.id, error)
                self.show(problem=str(error))
            else:
                return
