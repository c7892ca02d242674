"""The actions of a run's core.

Actions that may block (preparing, placing, concluding) run in a separate thread, which posts an event at the end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

from drivetrain_pipelines.actors.ray_failures import in_words
from drivetrain_pipelines.storage.json_files import JsonObject
from drivetrain_workers.protocol.messages import AgentSnapshot
from drivetrain_workers.protocol.reasons import Reason
from tenacity import Retrying, retry_if_exception_type, wait_fixed

from drivetrain.cluster.protocols import AgentHandle, AgentLostError, Gang, NodesGoneError
from drivetrain.coordinator.agent_events import AgentEvents
from drivetrain.coordinator.failures import failure_of
from drivetrain.coordinator.gang_request import waiting_since
from drivetrain.coordinator.live_run import LiveRun
from drivetrain.coordinator.scheduler import SchedulerHandle
from drivetrain.runs import events as ev
from drivetrain.runs import states as st
from drivetrain.runs.facts import RunFacts
from drivetrain.runs.outcomes import OUTCOMES
from drivetrain.runs.store import RunStore
from drivetrain.tracking.tracker import Tracker

_log = logging.getLogger(__name__)
_FLUSH_TIMEOUT_S, _FLUSH_SHOWN_S = 60, 5
_UPLOAD_TIMEOUT_S = 60.0  # for runs that end early; completed runs wait longer
_MAX_PLACEMENT_ATTEMPTS = 3
_RETRY_DELAY_S = 0.2


class PreparationCancelledError(Exception):
    """The run has ended while its data was being prepared."""


Spawn = Callable[[Callable[[], None]], None]


class Preparation(Protocol):
    """See `drivetrain.coordinator.preparation.Preparation`."""

    def prepare(self, on_progress: Callable[[int, int, str], None]) -> RunFacts:
        """Return the facts of the dataset. Raises DrivetrainError, OSError, and what ``on_progress`` raises."""


class Conclusion(Protocol):
    """See `drivetrain.coordinator.conclusion.Conclusion`."""

    def conclude(self, agents: Sequence[AgentHandle], dataset: str, entropy: float | None) -> RunFacts:
        """Do the work after training; return the facts of the summary."""

    def finish_uploads(self, agents: Sequence[AgentHandle], timeout_s: float) -> str:
        """Wait for the last uploads; describe what is missing."""


class Bookkeeping(Protocol):
    """See `drivetrain.coordinator.bookkeeping.Bookkeeping`."""

    def log_checkpoints(self) -> None:
        """Log the checkpoints of the run."""

    def account(self, store: RunStore) -> JsonObject:
        """Compute the account, log it and return its values."""


def spawn_thread(work: Callable[[], None]) -> None:
    """Run ``work`` in a thread."""
    threading.Thread(target=work, daemon=True).start()


class _Placer:
    """Starts the agents of a run on its allocation; retries if one dies immediately."""

    def __init__(self, run_id: str, gang: Gang, agents: AgentEvents, sleep: Callable[[float], None]) -> None:
        self._run_id, self._gang, self._agents, self._sleep = run_id, gang, agents, sleep

    def place(self, dataset: str, allocation: st.Allocation, wanted: Callable[[], bool]) -> ev.Event | _Placed:
        """Return the agents, or the event for a failure; stop when the agents are no longer wanted."""
        retrying = Retrying(
            retry=retry_if_exception_type(AgentLostError),  # an agent died immediately
            stop=lambda last: last.attempt_number >= _MAX_PLACEMENT_ATTEMPTS or not wanted(),
            wait=wait_fixed(_RETRY_DELAY_S),
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return retrying(self._once, dataset, allocation, wanted)
        except NodesGoneError as error:
            return ev.AllocationLost(str(error))
        except AgentLostError as error:
            return ev.AllocationUnusable(str(error))
        except Exception as error:  # Ray raises several types for a placement group that was released
            if wanted():
                _log.exception("placing %s", self._run_id)
            return ev.Failed(Reason.PLACEMENT_FAILED, in_words(error))

    def snapshots(self, agents: Sequence[AgentHandle]) -> list[AgentSnapshot]:
        """Return the snapshots of all agents. Raises AgentLostError and reports the node if an agent is dead."""
        try:
            return [agent.snapshot() for agent in agents]
        except AgentLostError as error:
            self._agents.report_failure_of(error.index)
            raise

    def _once(self, dataset: str, allocation: st.Allocation, wanted: Callable[[], bool]) -> _Placed:
        agents = self._gang.place(dataset, allocation.placement, wanted)
        return _Placed(agents, self.snapshots(agents))


class Actions:
    """The actions of one run. Every action is idempotent.

    Args:
        live: the run.
        store: durable records.
        gang: the run's agents.
        agents: listens to them.
        scheduler: grants allocations.
        tracker: logs the run.
        preparation, conclusion, bookkeeping: the work before, after and around training.
        spawn: runs functions that may block.
        sleep: waits for some seconds.
    """

    def __init__(
        self,
        live: LiveRun,
        store: RunStore,
        gang: Gang,
        agents: AgentEvents,
        scheduler: SchedulerHandle,
        tracker: Tracker,
        preparation: Preparation,
        conclusion: Conclusion,
        bookkeeping: Bookkeeping,
        spawn: Spawn = spawn_thread,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._live, self._store, self._gang, self._agents, self._scheduler = live, store, gang, agents, scheduler
        self._tracker, self._spawn = tracker, spawn
        self._placer = _Placer(live.id, gang, agents, sleep)
        self._preparation, self._conclusion, self._bookkeeping = preparation, conclusion, bookkeeping

    def perform(self, action: ev.Action) -> None:
        """Perform one action."""
        match action:
            case ev.Prepare():
                self._spawn(self._prepare)
            case ev.ReleaseAllocation(keep_copies):
                self._release_allocation(keep_copies)
            case ev.PlaceGang(dataset, allocation):
                self._spawn(partial(self._place, dataset, allocation))
            case ev.Attach(generation):
                self._attach(generation)
            case ev.StartGeneration(generation):
                self._start_generation(generation)
            case ev.StopRanks():
                for agent in self._agents.agents:
                    agent.stop()
            case ev.RequestStop():
                for agent in self._agents.agents:
                    agent.request_stop()
            case ev.Conclude(dataset):
                self._spawn(partial(self._conclude, dataset))
            case ev.Release(reason, detail):
                self._release(reason, detail)
            case _:
                raise TypeError(f"unknown action {action}")

    # Before training ------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        try:
            self._live.post(self._prepared())
        except PreparationCancelledError:
            return
        except (Exception, SystemExit) as error:  # the run waits for this thread: no error may end it in silence
            _log.exception("preparing %s", self._live.id)
            self._live.post(ev.Failed(*failure_of(error)))

    def _prepared(self) -> ev.Event:
        found = self._preparation.prepare(self._show_progress)
        first_version = self._live.view.facts.dataset_version or found.dataset_version
        if found.dataset_version != first_version:
            changed = f"the data has changed from version {first_version} to {found.dataset_version}"
            return ev.Failed(Reason.PREPARE_FAILED, f"{changed}; restore the data or start a new run")
        assert found.dataset
        self._live.update_facts(**found.known())
        return ev.Prepared(found.dataset)

    def _show_progress(self, done: int, total: int, what: str) -> None:
        if not isinstance(self._live.state, st.Preparing):
            raise PreparationCancelledError
        if self._live.view.preparing != (done, total, what):
            self._live.show(preparing=(done, total, what))

    # Agents ---------------------------------------------------------------------------------------------------

    def _release_allocation(self, keep_copies: bool) -> None:
        self._agents.clear()
        self._gang.release(keep_copies)
        self._scheduler.request_allocation(
            self._live.view.eta_s, waiting_since(self._live.created, self._live.history())
        )

    def _place(self, dataset: str, allocation: st.Allocation) -> None:
        """Start agents on an allocation; the result is ignored if the run no longer wants it."""

        def wanted() -> bool:
            return isinstance(self._live.state, st.Placing) and self._live.state.allocation == allocation

        outcome = self._placer.place(dataset, allocation, wanted)
        self._live.post(partial(self._handle_placed, outcome, wanted))

    def _handle_placed(self, outcome: ev.Event | _Placed, wanted: Callable[[], bool]) -> Iterator[ev.Event]:
        if wanted():
            if isinstance(outcome, _Placed):
                self._agents.listen_to(outcome.agents)
                self._show_pids(outcome.snapshots)
                yield ev.GangPlaced()
            else:
                yield outcome
        elif isinstance(self._live.state, st.Ended):  # cancelled in the meantime
            self._gang.release()

    def _attach(self, generation: int) -> None:
        state = self._live.state
        assert isinstance(state, st.Allocated)
        try:
            agents = self._gang.attach(state.allocation.placement)
            snapshots = self._placer.snapshots(agents)
        except AgentLostError as error:
            self._live.post(ev.AgentLost(generation, f"not found after a restart of the coordinator: {error}"))
            return
        self._show_pids(snapshots)
        self._agents.listen_to(agents)
        started = [snapshot.generation == generation for snapshot in snapshots]
        if isinstance(state, st.Starting) and not any(started):
            self._start_generation(generation)
        elif not all(started) and not isinstance(state, st.Finishing | st.Waiting):
            detail = "the coordinator restarted during the start of the generation"
            self._live.post(ev.RankLost(generation, Reason.COLLECTIVE, detail, self._live.clock()))

    def _show_pids(self, snapshots: Sequence[AgentSnapshot]) -> None:
        pids = dict(self._live.view.pids)  # replaced, not changed: other threads may be reading
        for index, snapshot in enumerate(snapshots):
            pids |= {f"agent-{index}": snapshot.pid, f"fork-server-{index}": snapshot.fork_server}
            pids |= {f"rank-{rank}": pid for rank, pid in snapshot.ranks.items()}
        self._live.view.pids = pids

    def _start_generation(self, generation: int) -> None:
        self._live.view.timeline = {}
        self._live.view.mark("requested")
        try:
            self._gang.start(self._agents.agents, generation)
        except (AgentLostError, OSError) as error:  # the agent, or its fork server, is dead
            self._live.post(ev.AgentLost(generation, str(error)))
            return
        self._tracker.tags(generation=generation, restarts=self._live.state.progress.restarts)

    # After training -------------------------------------------------------------------------------------------

    def _conclude(self, dataset: str) -> None:
        try:
            entropy = self._live.view.facts.unigram_entropy
            facts = self._conclusion.conclude(self._agents.agents, dataset, entropy)
        except Exception as error:  # not fatal: the model is trained and saved
            _log.exception("concluding %s", self._live.id)
            facts = RunFacts(problem=f"the run is complete, but its summary is incomplete: {failure_of(error)[1]}")
        try:
            self._live.update_facts(**facts.known())
        except Exception:  # the run waits for this thread
            _log.exception("the summary of %s", self._live.id)
        self._live.post(ev.Concluded())

    def _release(self, reason: Reason, detail: str) -> None:
        tracked = False
        self._live.view.waiting = ""  # of the time before
        try:
            try:
                self._live.update_facts(reason=str(reason), detail=detail or OUTCOMES[reason].meaning)
                if reason is not Reason.COMPLETED or detail:  # otherwise the conclusion has waited for them
                    self._finish_uploads()
            finally:  # always release the allocation, and report it as free only afterwards
                self._gang.release()
                self._scheduler.release()
            self._account()
            self._tracker.tags(reason=reason, detail=detail)
            self._tracker.end(OUTCOMES[reason].status)
            tracked = _ship_rest(self._tracker, self._live)
        finally:  # clients that follow the run must see its end
            self._tracker.close()
            self._live.update_facts(released=True, tracked=tracked, **tracking_facts(self._tracker))

    def _finish_uploads(self) -> None:
        if missing := self._conclusion.finish_uploads(self._agents.agents, _UPLOAD_TIMEOUT_S):
            self._live.update_facts(problem=missing)

    def _account(self) -> None:
        try:
            self._bookkeeping.log_checkpoints()
            self._live.update_facts(account=self._bookkeeping.account(self._store))
        except Exception as error:  # not fatal: the run has ended
            _log.exception("the account of %s", self._live.id)
            self._live.update_facts(problem=f"the account of the run is incomplete: {failure_of(error)[1]}")


def _ship_rest(tracker: Tracker, live: LiveRun) -> bool:
    """Wait until MLflow has received everything, and show what it waits for; return False after a minute."""
    for waited in range(0, _FLUSH_TIMEOUT_S, _FLUSH_SHOWN_S):
        if tracker.flush(_FLUSH_SHOWN_S):
            return True
        problem = f": {tracker.problem}" if tracker.problem else ""
        left = _FLUSH_TIMEOUT_S - waited - _FLUSH_SHOWN_S
        live.show_waiting(f"MLflow does not receive the rest of the records, waiting {left} s more{problem}")
    return False


def tracking_facts(tracker: Tracker) -> dict[str, Any]:
    """Return what `RunFacts` say about the tracking of a run."""
    return {"tracking_problem": tracker.problem, "tracking_notes": tracker.notes, **tracker.identity}


class _Placed:
    """The agents of an allocation after their start."""

    def __init__(self, agents: Sequence[AgentHandle], snapshots: Sequence[AgentSnapshot]) -> None:
        self.agents, self.snapshots = agents, snapshots
