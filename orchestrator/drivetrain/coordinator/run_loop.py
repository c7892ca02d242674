"""The loop around the pure core of one run: it receives events, calls the core, stores the state and acts."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from functools import partial

from drivetrain_workers.protocol.reasons import Reason

from drivetrain.coordinator.actions import Actions, tracking_facts
from drivetrain.coordinator.failures import failure_of
from drivetrain.coordinator.live_run import LiveRun, Work
from drivetrain.coordinator.scheduler import SchedulerHandle
from drivetrain.runs import events as ev
from drivetrain.runs import states as st
from drivetrain.runs.controller import actions_to_resume, is_transition, step
from drivetrain.runs.view import RunView
from drivetrain.tracking.tracker import Tracker

_log = logging.getLogger(__name__)
_TICK_INTERVAL_S = 0.5
_BUDGET_INTERVAL_S = 2.0
_CLOSING_TIMEOUT_S = 180.0  # longer than the timeouts of uploads and of the tracker's flush


class RunLoop:
    """Manages one run until it has ended.

    Args:
        live: the run.
        actions: performs the actions of the core.
        scheduler: the run's interface to the scheduler.
        tracker: logs the run.
        overspent: returns which budget is spent, given the energy used in joules; empty if none is.
    """

    def __init__(
        self,
        live: LiveRun,
        actions: Actions,
        scheduler: SchedulerHandle,
        tracker: Tracker,
        overspent: Callable[[float], str],
    ) -> None:
        self._live, self._actions, self._scheduler, self._tracker = live, actions, scheduler, tracker
        self._overspent = overspent
        self._budget_checked = live.clock()
        self._tracking = tracking_facts(tracker)
        self._finished = threading.Event()
        self._on_end: Callable[[], None] = _nothing
        scheduler.connect(live.post, live.show_waiting)
        state = live.state
        if isinstance(state, st.Allocated):  # here, not in the thread: before the first scheduling pass
            scheduler.restore_allocation(state.allocation, leaving=isinstance(state, st.Stopping))
        elif isinstance(state, st.Preparing):
            scheduler.mark_preparing()

    def start(self, on_end: Callable[[], None]) -> None:
        """Start or resume the run in a thread; ``on_end`` is called after its end."""
        self._on_end = on_end
        threading.Thread(target=self._run, name=f"run-{self._live.id}", daemon=True).start()

    def cancel(self) -> None:
        """Ask the run to save and end."""
        self._live.post(ev.CancelRequested())

    def view(self, known_version: int, timeout_s: float) -> RunView:
        """Return the run's view; wait up to ``timeout_s`` for a version newer than ``known_version``."""
        return self._live.wait_for_view(known_version, timeout_s)

    @property
    def waiting(self) -> str:
        """The reason why the run is queued."""
        return self._live.view.waiting

    @property
    def ended(self) -> bool:
        """Whether the loop has finished."""
        return self._finished.is_set()

    def wait_if_closing(self) -> None:
        """Wait while a run that has ended still releases its resources."""
        if isinstance(self._live.state, st.Ended):
            self._finished.wait(_CLOSING_TIMEOUT_S)

    def begin(self) -> None:
        """Start the run, or resume it from its stored state."""
        self._live.show()
        self._guarded(self._resume)
        self._live.show()
        self._finish_if_ended()

    def iterate(self) -> None:
        """Process the next item of the inbox, or a tick."""
        try:
            item = self._live.inbox.get(timeout=_TICK_INTERVAL_S)
        except queue.Empty:
            item = ev.Tick(self._live.clock())
        before = self._live.state
        self._guarded(self._check_budget)
        self._guarded(self._show_tracking)
        self._guarded(partial(self._handle, item) if isinstance(item, ev.Event) else partial(self._do, item))
        if not isinstance(item, ev.Tick) or self._live.state is not before:
            self._live.show()
        self._finish_if_ended()

    def _run(self) -> None:
        self.begin()
        while not self.ended:
            self.iterate()

    def _finish_if_ended(self) -> None:
        if isinstance(self._live.state, st.Ended):
            self._on_end()
            self._finished.set()
            self._live.show()

    def _resume(self) -> None:
        if isinstance(self._live.state, st.Queued):
            self._tracker.begin()
            self._scheduler.request_preparation()
        for action in actions_to_resume(self._live.state):
            self._actions.perform(action)

    def _guarded(self, work: Callable[[], None]) -> None:
        """Run ``work``; an internal error ends the run with a reason instead of a hang."""
        try:
            work()
        except Exception as error:
            _log.exception("run %s", self._live.id)
            self._live.post(ev.Failed(Reason.INTERNAL, failure_of(error)[1]))

    def _do(self, work: Work) -> None:
        for event in work():
            self._handle(event)

    def _handle(self, event: ev.Event) -> None:
        """Decide, store, act: in this order, so that a restart after a crash completes the remaining parts."""
        before = self._live.state
        state, actions = step(before, event)
        if is_transition(before, state):
            self._live.save(state, str(event))
            _log.info("%s: %s -> %s on %r", self._live.id, before.phase, state.phase, event)
        self._live.state = state
        for action in actions:
            self._actions.perform(action)

    def _show_tracking(self) -> None:
        """Store what has changed about the tracking, for `drivetrain status`."""
        if (found := tracking_facts(self._tracker)) != self._tracking:
            self._tracking = found
            self._live.update_facts(**found)

    def _check_budget(self) -> None:
        now, state = self._live.clock(), self._live.state
        if now - self._budget_checked < _BUDGET_INTERVAL_S:
            return
        self._budget_checked = now
        computes = isinstance(state, st.Allocated) and not isinstance(state, st.Stopping | st.Finishing)
        if computes and (spent := self._overspent(self._live.view.energy_j)):
            self._handle(ev.CancelRequested(Reason.BUDGET_SPENT, spent))


def _nothing() -> None:
    """Do nothing: the loop is not started."""
