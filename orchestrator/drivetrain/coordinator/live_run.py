"""State shared by the parts of a run's loop: its state, view and facts, and the inbox of events."""

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

Work = Callable[[], Iterable[ev.Event]]  # runs in the loop's thread and yields events for the core


class Inbox(Protocol):
    """A queue; `queue.SimpleQueue` is one."""

    def put(self, item: ev.Event | Work) -> None:
        """Add an item."""

    def get(self, block: bool = True, timeout: float | None = None) -> ev.Event | Work:
        """Remove and return the oldest item. Raises `queue.Empty` after ``timeout`` seconds without one."""


class LiveRun:
    """One run while its loop is active. Only the loop's thread changes the state.

    Args:
        record: of the run.
        store: durable records.
        energy_j: energy used since the run was submitted or resumed, in joules.
        inbox: events and work for the loop.
        clock: returns the time in seconds since the epoch.
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
        """Add an event or some work to the inbox of the loop."""
        self.inbox.put(item)

    def save(self, state: st.State, why: str) -> None:
        """Store a transition; wait while the database is unavailable."""
        self._store_with_retries(lambda: self._store.save(self.id, state, why))

    def update_facts(self, **changes: Any) -> None:
        """Store facts and publish them; wait while the database is unavailable."""
        self._store_with_retries(lambda: self._store.update_facts(self.id, **changes))
        self.show_facts(**changes)

    def show_facts(self, **changes: Any) -> None:
        """Publish facts without storing them."""
        with self._changed:
            self.view.facts = self.view.facts.updated(**changes)

    def show(self, **figures: Any) -> None:
        """Set the given values in the view and publish it."""
        with self._changed:
            for name, value in figures.items():
                setattr(self.view, name, value)
            self.view.phase = self.state.phase
            self.view.generation = self.generation
            self.view.restarts = self.state.progress.restarts
            self.view.version += 1
            self._changed.notify_all()

    def show_waiting(self, why: str) -> None:
        """Show why the run has no allocation yet."""
        if why != self.view.waiting:
            self.show(waiting=why)

    def wait_for_view(self, known_version: int, timeout_s: float) -> RunView:
        """Return the run's view; wait up to ``timeout_s`` for a version newer than ``known_version``."""
        with self._changed:
            self._changed.wait_for(lambda: self.view.version > known_version, timeout_s)
            return self.view.copy()

    def history(self) -> list[tuple[float, str, st.State]]:
        """Return every transition; see `RunStore.history`."""
        return self._store.history(self.id)

    def _store_with_retries(self, store: Callable[[], None]) -> None:
        """Call ``store`` until it succeeds; meanwhile training continues, and the view shows the error."""
        while True:
            try:
                store()
            except StoreUnavailableError as error:  # after minutes of retries
                _log.warning("%s: %s", self.id, error)
                self.show(problem=str(error))
            else:
                return
