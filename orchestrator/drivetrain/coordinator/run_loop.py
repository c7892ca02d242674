"""The shell around one run's pure core: observes, stores, acts.

One thread takes events from a queue, has the core decide, stores the transition and carries out the actions. What may
block (preparing, placing, listening to agents) runs in threads of its own and answers with events.
"""

from __future__ import annotations

import copy
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import ray
from drivetrain_pipelines.errors import DrivetrainError
from drivetrain_workers.protocol.reasons import Reason

from drivetrain.cluster.gang import Agent, Gang, NodesGoneError
from drivetrain.coordinator.gang_request import waiting_since
from drivetrain.coordinator.observer import Observer
from drivetrain.coordinator.preparation import Stages
from drivetrain.coordinator.scheduler import Applicant
from drivetrain.runs import events as ev
from drivetrain.runs import states as st
from drivetrain.runs.controller import actions_to_resume, is_transition, step
from drivetrain.runs.outcomes import OUTCOMES
from drivetrain.runs.store import RunStore
from drivetrain.runs.view import RunView
from drivetrain.scheduling.model import node_of
from drivetrain.tracking.tracker import Tracker

_log = logging.getLogger(__name__)
_TICK_S = 0.5
_POLL_S = 10.0
_FLUSH_S = 60.0
_UPLOAD_S = 60.0  # of a run that ends early; a complete one waits longer
_PLACE_TRIES = 3
_BUDGET_S = 2.0
_CLOSING_S = 180.0  # uploads and the tracker's flush are bounded by less
_AGAIN_S = 0.2


class RunLoop:
    """Looks after one run until it has ended.

    Args:
        run_id: of a run in ``store``.
        store: durable records.
        gang: the run's agents.
        stages: preparation and conclusion.
        tracker: where metrics go.
        applicant: the run's line to the scheduler.
    """

    def __init__(
        self, run_id: str, store: RunStore, gang: Gang, stages: Stages, tracker: Tracker, applicant: Applicant
    ) -> None:
        record = store.get(run_id)
        self._run_id, self._store, self._gang, self._stages, self._tracker = run_id, store, gang, stages, tracker
        self._state = record.state
        self._events: queue.SimpleQueue[ev.Event | Callable[[], None]] = queue.SimpleQueue()
        self._agents: list[Agent] = []
        self._listening: dict[str, threading.Thread] = {}
        self._changed = threading.Condition()
        energy_j = stages.energy_since_resumed(store.history(run_id))
        self._view = RunView(run_id, facts=record.facts, pids={"coordinator": os.getpid()}, energy_j=energy_j)
        tells = (self._learn, self._handle, self._blame)
        self._observer = Observer(self._view, tracker, stages.folder.ledger, *tells, record.created)
        self._applicant = applicant
        applicant.connect(self._events.put, self._waits_because)
        if isinstance(self._state, st.Held):  # now, not in the thread: no pass may come before
            applicant.holds(self._state.place, leaving=isinstance(self._state, st.Stopping))
        elif isinstance(self._state, st.Preparing):
            applicant.prepares()
        self._thread = threading.Thread(target=self._run, name=f"run-{run_id}", daemon=True)

    def start(self, on_end: Callable[[], None]) -> None:
        """Begin, or go on from what the store says; ``on_end`` is called when nothing is left to do."""
        self._on_end = on_end
        self._thread.start()

    def cancel(self) -> None:
        """Ask the run to save and end."""
        self._events.put(ev.CancelAsked())

    def view(self, known_version: int, timeout_s: float) -> dict[str, Any]:
        """The run's figures; waits until they are newer than ``known_version``, but not longer than ``timeout_s``."""
        with self._changed:
            self._changed.wait_for(lambda: self._view.version > known_version, timeout_s)
            return copy.deepcopy(asdict(self._view))

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to look after."""
        return not self._thread.is_alive()

    def wait_if_closing(self) -> None:
        """Wait for the end of a run that has ended but is still giving back what it had."""
        if isinstance(self._state, st.Ended) and self._thread.is_alive():
            self._thread.join(_CLOSING_S)

    # The loop -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._show()
        self._guarded(self._begin)
        self._show()
        budget_seen = time.monotonic()
        while not isinstance(self._state, st.Ended):
            try:
                item = self._events.get(timeout=_TICK_S)
            except queue.Empty:
                item = ev.Tick(time.time())
            known = self._state
            if time.monotonic() - budget_seen > _BUDGET_S:
                budget_seen = time.monotonic()
                self._guarded(self._watch_budget)
            self._guarded(partial(self._handle, item) if isinstance(item, ev.Event) else item)
            if not isinstance(item, ev.Tick) or self._state is not known:
                self._show()
        self._on_end()
        self._show()

    def _begin(self) -> None:
        match self._state:
            case st.Held(place=st.Place(placement=())) if not isinstance(self._state, st.Finishing):
                self._handle(ev.PlaceLost("a version before this one began it"))
                return
            case st.Queued():
                self._tracker.begin()
                self._applicant.wants_to_prepare()
            case _:
                pass
        for action in actions_to_resume(self._state):
            self._act(action)

    def _guarded(self, work: Callable[[], None]) -> None:
        """A mistake of ours ends the run with a clear reason instead of leaving it hanging."""
        try:
            work()
        except Exception as error:
            _log.exception("run %s", self._run_id)
            self._events.put(ev.Failed(Reason.INTERNAL, repr(error)))

    def _handle(self, event: ev.Event) -> None:
        """Decide, store, act: in this order, so that a crash between any two is made good by doing the rest again."""
        before = self._state
        state, actions = step(before, event)
        if is_transition(before, state):
            self._store.save(self._run_id, state, str(event))
            _log.info("%s: %s -> %s on %r", self._run_id, before.phase, state.phase, event)
        self._state = state
        for action in actions:
            self._act(action)

    def _show(self) -> None:
        with self._changed:
            self._view.phase = self._state.phase
            self._view.generation = self._state.progress.generation
            self._view.restarts = self._state.progress.restarts
            self._view.version += 1
            self._changed.notify_all()

    def _watch_budget(self) -> None:
        if isinstance(self._state, st.Held) and not isinstance(self._state, st.Stopping | st.Finishing):
            history = partial(self._store.history, self._run_id)
            if gone := self._stages.overspent(history, self._view.energy_j):
                self._handle(ev.CancelAsked(Reason.BUDGET_SPENT, gone))

    # Actions --------------------------------------------------------------------------------------------------

    def _act(self, action: ev.Action) -> None:
        match action:
            case ev.Prepare():
                self._in_thread(self._prepare)
            case ev.GiveBack(keep_copies):
                self._give_back(keep_copies)
            case ev.PlaceGang(dataset, place):
                self._in_thread(lambda: self._place(dataset, place))
            case ev.Attach(generation):
                self._attach(generation)
            case ev.StartGeneration(generation):
                self._start_generation(generation)
            case ev.StopRanks():
                self._tell("stop")
            case ev.AskStop():
                self._tell("ask_stop")
            case ev.Conclude(dataset):
                self._in_thread(lambda: self._conclude(dataset))
            case ev.Release(reason, detail):
                self._release(reason, detail)
            case _:
                raise TypeError(f"no way to carry out {action}")

    def _prepare(self) -> None:
        try:
            dataset, facts = self._stages.prepare(self._preparing)
        except (DrivetrainError, OSError) as error:
            self._events.put(ev.Failed(Reason.PREPARE_FAILED, str(error)))
            return
        began_with = self._view.facts.get("dataset_version", facts["dataset_version"])
        if facts["dataset_version"] != began_with:
            changed = f"the data is version {facts['dataset_version']} now, the run began with {began_with}"
            self._events.put(ev.Failed(Reason.PREPARE_FAILED, f"{changed}; restore the data, or run the job anew"))
            return
        self._learn(**facts)
        self._events.put(ev.Prepared(dataset))

    def _preparing(self, done: int, total: int, what: str) -> None:
        with self._changed:
            self._view.preparing = (done, total, what)
            self._view.version += 1
            self._changed.notify_all()

    def _place(self, dataset: str, place: st.Place) -> None:
        """Get agents at a place; whatever comes of it counts only while the run still wants that place."""

        def wanted() -> bool:
            return isinstance(self._state, st.Placing) and self._state.place == place

        outcome: ev.Event | Callable[[], None]
        tries = _PLACE_TRIES
        while True:
            try:
                agents = self._gang.place(dataset, place.placement, wanted)
                outcome = partial(self._placed, agents, self._snapshots(agents))
            except NodesGoneError as error:
                outcome = ev.PlaceLost(str(error))
            except ray.exceptions.RayActorError as error:  # one died at once
                tries -= 1
                if tries and wanted():
                    time.sleep(_AGAIN_S)
                    continue
                outcome = ev.PlaceUnfit(str(error).splitlines()[0])
            except Exception as error:  # Ray has several kinds for a group that was given back meanwhile
                if wanted():
                    _log.exception("placing %s", self._run_id)
                outcome = ev.Failed(Reason.PLACEMENT_FAILED, str(error))
            break
        self._events.put(partial(self._take_in, outcome, wanted))

    def _take_in(self, outcome: ev.Event | Callable[[], None], wanted: Callable[[], bool]) -> None:
        if wanted():
            self._handle(outcome) if isinstance(outcome, ev.Event) else outcome()
        elif isinstance(self._state, st.Ended):  # cancelled meanwhile
            self._gang.release()

    def _placed(self, agents: list[Agent], snapshots: list[dict[str, Any]]) -> None:
        self._listen_to(agents)
        self._note_pids(snapshots)
        self._handle(ev.GangPlaced())

    def _give_back(self, keep_copies: bool) -> None:
        self._agents = []
        self._gang.release(keep_copies)
        since = waiting_since(self._store.get(self._run_id).created, self._store.history(self._run_id))
        self._applicant.wants_place(self._view.eta_s, since)

    def _waits_because(self, why: str) -> None:
        with self._changed:
            if why != self._view.waiting:
                self._view.waiting = why
                self._view.version += 1
                self._changed.notify_all()

    def _snapshots(self, agents: list[Agent]) -> list[dict[str, Any]]:
        """Of all agents. Raises `RayActorError` for one that is dead, for which its node is blamed."""
        calls = [agent.handle.snapshot.remote() for agent in agents]
        snapshots = []
        for agent, call in zip(agents, calls, strict=True):
            try:
                snapshots.append(ray.get(call))
            except ray.exceptions.RayActorError:
                self._blame_for(agent)
                raise
        return snapshots

    def _note_pids(self, snapshots: list[dict[str, Any]]) -> None:
        pids = dict(self._view.pids)  # replaced, not changed: others may be reading
        for index, snapshot in enumerate(snapshots):
            pids |= {f"agent-{index}": snapshot["pid"], f"fork-server-{index}": snapshot["fork_server"]}
            pids |= {f"rank-{rank}": pid for rank, pid in snapshot["ranks"].items()}
        self._view.pids = pids

    def _attach(self, generation: int) -> None:
        try:
            agents = self._gang.attach(self._place_of(self._state).placement)
            snapshots = self._snapshots(agents)
        except (ValueError, ray.exceptions.RayError) as error:
            self._events.put(ev.AgentLost(generation, f"not found after a restart: {error}"))
            return
        self._note_pids(snapshots)
        self._listen_to(agents)
        begun = [snapshot["generation"] == generation for snapshot in snapshots]
        if isinstance(self._state, st.Starting) and not any(begun):
            self._start_generation(generation)
        elif not all(begun) and not isinstance(self._state, st.Finishing | st.Waiting):
            detail = "the coordinator was restarted while it was starting the generation"
            self._events.put(ev.RankLost(generation, Reason.COLLECTIVE, detail, time.time()))

    @staticmethod
    def _place_of(state: st.State) -> st.Place:
        assert isinstance(state, st.Held)
        return state.place

    def _start_generation(self, generation: int) -> None:
        self._view.timeline = {}
        self._view.mark("told")
        try:
            self._gang.start(self._agents, generation)
        except ray.exceptions.RayError as error:  # it, or its fork server, is dead
            self._events.put(ev.AgentLost(generation, str(error).splitlines()[0]))
            return
        self._tracker.tags(generation=generation, restarts=self._state.progress.restarts)

    def _tell(self, method: str) -> None:
        for agent in self._agents:
            getattr(agent.handle, method).remote()  # a dead agent is reported by its listener

    def _conclude(self, dataset: str) -> None:
        try:
            facts = self._stages.conclude(self._agents, dataset, self._view.facts["unigram_entropy"])
        except Exception as error:  # the model is trained and saved: what is missing here is said, not fatal
            _log.exception("concluding %s", self._run_id)
            facts = {"problem": f"the run is complete, but its summary is not: {error}"}
        self._learn(**facts)
        self._events.put(ev.Concluded())

    def _release(self, reason: Reason, detail: str) -> None:
        tracked = False
        try:
            try:
                self._learn(reason=str(reason), detail=detail or OUTCOMES[reason].meaning)
                if reason is not Reason.COMPLETED and (missing := self._stages.finish_uploads(self._agents, _UPLOAD_S)):
                    self._learn(problem=missing)
            finally:  # whatever else goes wrong, the place is given back, and only then said to be free
                self._gang.release()
                self._applicant.leaves()
            self._account()
            self._tracker.tags(reason=reason, detail=detail)
            self._tracker.end(OUTCOMES[reason].status)
            tracked = self._tracker.flush(_FLUSH_S)
            self._tracker.close()
        finally:  # whoever follows the run must see it end
            told = {"tracked": tracked, "tracking_problem": self._tracker.problem}
            self._learn(released=True, **told, **self._tracker.identity)

    def _account(self) -> None:
        try:
            self._stages.log_checkpoints()
            self._learn(**self._stages.account(self._store))
        except Exception as error:  # the run has ended, well or badly: what is missing here is said, not fatal
            _log.exception("the account of %s", self._run_id)
            self._learn(problem=f"the account of the run is not complete: {error}")

    def _learn(self, **facts: Any) -> None:
        self._store.learn(self._run_id, **facts)
        with self._changed:
            self._view.facts = {**self._view.facts, **facts}

    # Observing ------------------------------------------------------------------------------------------------

    def _listen_to(self, agents: list[Agent]) -> None:
        self._agents = agents
        for agent in agents:
            actor = agent.handle._actor_id.hex()
            if actor not in self._listening or not self._listening[actor].is_alive():
                thread = threading.Thread(target=self._listen, args=(agent,), name="agent-events", daemon=True)
                self._listening[actor] = thread
                thread.start()

    def _listen(self, agent: Agent) -> None:
        """Read one agent's events by long polls until it is dead or the run has ended."""
        since = 0
        while not isinstance(self._state, st.Ended):
            try:
                news = ray.get(agent.handle.events.remote(since, _POLL_S))
            except ray.exceptions.RayError as error:
                lost = ev.AgentLost(self._state.progress.generation, str(error).splitlines()[0])
                self._events.put(lambda lost=lost: self._agent_lost(agent, lost))  # type: ignore[misc]
                return
            if news:
                since = news[-1]["number"] + 1
                self._events.put(partial(self._observe, news))

    def _blame(self, rank: int) -> None:
        if isinstance(self._state, st.Held):
            self._applicant.blames(node_of(rank, self._state.place.placement))

    def _blame_for(self, agent: Agent) -> None:
        if isinstance(self._state, st.Held):
            self._applicant.blames(self._state.place.placement[agent.index][0])

    def _agent_lost(self, agent: Agent, lost: ev.AgentLost) -> None:
        if agent in self._agents:  # not one that was replaced meanwhile
            self._view.problem = lost.detail
            self._blame_for(agent)
            self._handle(ev.AgentLost(self._state.progress.generation, lost.detail))

    def _observe(self, news: list[dict[str, Any]]) -> None:
        """Take in what an agent has told."""
        for event in news:
            self._guarded(partial(self._observer.observe, event, self._state.progress.generation))
        self._applicant.expects_end(self._view.eta_s, self._view.start_s)

    def _in_thread(self, work: Callable[[], None]) -> None:
        threading.Thread(target=self._guarded, args=(work,), name="run-work", daemon=True).start()
