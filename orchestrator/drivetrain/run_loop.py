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
from pathlib import Path
from typing import Any

import ray
from drivetrain_pipelines.errors import DrivetrainError
from drivetrain_workers.checkpoints import ledger

from drivetrain.cluster.gang import Agent, Gang
from drivetrain.run_view import RunView
from drivetrain.runs import events as ev
from drivetrain.runs import states as st
from drivetrain.runs.controller import actions_to_resume, step
from drivetrain.runs.outcomes import OUTCOMES, Reason
from drivetrain.runs.store import RunStore
from drivetrain.stages import Stages
from drivetrain.tracking.tracker import Tracker

_log = logging.getLogger(__name__)
_TICK_S = 0.5
_POLL_S = 10.0
_FLUSH_S = 60.0
_UPLOAD_S = 60.0  # of a run that ends early; a complete one waits longer
_PLACE_TRIES = 5


class RunLoop:
    """Looks after one run until it has ended.

    Args:
        run_id: of a run in ``store``.
        store: durable records.
        gang: the run's agents.
        stages: preparation and conclusion.
        tracker: where metrics go.
    """

    def __init__(self, run_id: str, store: RunStore, gang: Gang, stages: Stages, tracker: Tracker) -> None:
        record = store.get(run_id)
        self._run_id, self._store, self._gang, self._stages, self._tracker = run_id, store, gang, stages, tracker
        self._state = record.state
        self._events: queue.SimpleQueue[ev.Event | Callable[[], None]] = queue.SimpleQueue()
        self._agents: list[Agent] = []
        self._listening: dict[str, threading.Thread] = {}
        self._changed = threading.Condition()
        self._view = RunView(run_id, facts=record.facts, pids={"coordinator": os.getpid()})
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

    # The loop -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._show()
        self._guarded(self._begin)
        self._show()
        while not isinstance(self._state, st.Ended):
            try:
                item = self._events.get(timeout=_TICK_S)
            except queue.Empty:
                item = ev.Tick(time.time())
            known = self._state
            self._guarded(partial(self._handle, item) if isinstance(item, ev.Event) else item)
            if not isinstance(item, ev.Tick) or self._state is not known:
                self._show()
        self._on_end()
        self._show()

    def _begin(self) -> None:
        for action in actions_to_resume(self._state):
            self._act(action)
        if isinstance(self._state, st.Queued):
            self._tracker.begin()
            self._handle(ev.Admitted())

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
        self._state, actions = step(before, event)
        if type(self._state) is not type(before) or self._state.progress.generation != before.progress.generation:
            self._store.save(self._run_id, self._state, repr(event))
            _log.info("%s: %s -> %s on %s", self._run_id, before.phase, self._state.phase, event)
        for action in actions:
            self._act(action)

    def _show(self) -> None:
        with self._changed:
            self._view.phase = self._state.phase
            self._view.generation = self._state.progress.generation
            self._view.restarts = self._state.progress.restarts
            self._view.version += 1
            self._changed.notify_all()

    # Actions --------------------------------------------------------------------------------------------------

    def _act(self, action: ev.Action) -> None:
        match action:
            case ev.Prepare():
                self._in_thread(self._prepare)
            case ev.Place(dataset):
                self._in_thread(lambda: self._place(dataset))
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

    def _place(self, dataset: str) -> None:
        problem: Exception | None = None
        for _ in range(_PLACE_TRIES):
            try:
                agents = self._gang.place(dataset)
                snapshots = ray.get([agent.handle.snapshot.remote() for agent in agents])
            except ray.exceptions.RayActorError as error:  # an agent died at once
                problem = error
                continue
            except DrivetrainError as error:
                problem = error
                break
            if isinstance(self._state, st.Ended):  # cancelled meanwhile
                self._gang.release()
            self._events.put(partial(self._placed, agents, snapshots))
            return
        self._events.put(ev.Failed(Reason.PLACEMENT_FAILED, str(problem)))

    def _placed(self, agents: list[Agent], snapshots: list[dict[str, Any]]) -> None:
        self._listen_to(agents)
        self._note_pids(snapshots)
        self._handle(ev.GangPlaced())

    def _note_pids(self, snapshots: list[dict[str, Any]]) -> None:
        pids = dict(self._view.pids)  # replaced, not changed: others may be reading
        for index, snapshot in enumerate(snapshots):
            pids |= {f"agent-{index}": snapshot["pid"], f"fork-server-{index}": snapshot["fork_server"]}
            pids |= {f"rank-{rank}": pid for rank, pid in snapshot["ranks"].items()}
        self._view.pids = pids

    def _attach(self, generation: int) -> None:
        try:
            agents = self._gang.attach()
            snapshots = ray.get([agent.handle.snapshot.remote() for agent in agents])
        except (ValueError, ray.exceptions.RayActorError) as error:
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

    def _start_generation(self, generation: int) -> None:
        self._view.timeline = {}
        self._view.mark("told")
        try:
            self._gang.start(self._agents, generation)
        except (ray.exceptions.RayActorError, ray.exceptions.RayTaskError) as error:  # it, or its fork server, is dead
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
            self._learn(reason=str(reason), detail=detail or OUTCOMES[reason].meaning)
            if reason is not Reason.COMPLETED and (missing := self._stages.finish_uploads(self._agents, _UPLOAD_S)):
                self._learn(problem=missing)
            self._gang.release()
            self._tracker.tags(reason=reason, detail=detail)
            self._tracker.end(OUTCOMES[reason].status)
            tracked = self._tracker.flush(_FLUSH_S)
            self._tracker.close()
        finally:  # whoever follows the run must see it end
            self._learn(released=True, tracked=tracked, **self._tracker.identity)

    def _learn(self, **facts: Any) -> None:
        self._store.learn(self._run_id, **facts)
        with self._changed:
            self._view.facts = {**self._view.facts, **facts}

    # Observing ------------------------------------------------------------------------------------------------

    def _listen_to(self, agents: list[Agent]) -> None:
        self._agents = agents
        for agent in agents:
            actor = agent.handle._actor_id.hex()
            if actor not in self._listening:
                thread = threading.Thread(target=self._listen, args=(agent,), name="agent-events", daemon=True)
                self._listening[actor] = thread
                thread.start()

    def _listen(self, agent: Agent) -> None:
        """Read one agent's events by long polls until it is dead or the run has ended."""
        since = 0
        while not isinstance(self._state, st.Ended):
            try:
                news = ray.get(agent.handle.events.remote(since, _POLL_S))
            except ray.exceptions.RayActorError as error:
                lost = ev.AgentLost(self._state.progress.generation, str(error).splitlines()[0])
                self._events.put(lambda lost=lost: self._agent_lost(agent, lost))  # type: ignore[misc]
                return
            if news:
                since = news[-1]["number"] + 1
                self._events.put(partial(self._observe, news))

    def _agent_lost(self, agent: Agent, lost: ev.AgentLost) -> None:
        if agent in self._agents:  # not one that was replaced meanwhile
            self._view.problem = lost.detail
            self._handle(ev.AgentLost(self._state.progress.generation, lost.detail))

    def _observe(self, news: list[dict[str, Any]]) -> None:
        """Take in what an agent has told."""
        for event in news:
            self._guarded(partial(self._observe_one, event))

    def _observe_one(self, event: dict[str, Any]) -> None:
        """What an agent's event means for the view, the tracker and the core."""
        current = event.get("generation") == self._state.progress.generation
        match event["type"]:
            case "forked" | "phase" if current:
                self._started(event)
            case "step" if current:
                self._stepped(event)
            case "eval":
                self._evaluated(event["step"], event["time"], event)
            case "predictions":
                self._tracker.artifact(Path(event["path"]), "predictions")
            case "checkpoint":
                self._view.facts = {**self._view.facts, "checkpoint": event["folder"]}
                self._handle(ev.Committed(event["generation"], event["step"]))
            case "uploaded":
                self._learn(stored=max(event["url"], self._view.facts.get("stored", "")))
            case "corrupt_checkpoint" | "warning":
                self._view.problem = event["message"]
                _log.warning("%s: %s", self._run_id, event["message"])
            case "finished":
                self._handle(ev.RanksFinished(event["generation"], event["complete"]))
            case "exited" if event["code"] != 0:
                self._lost(event)
            case "hung" if current:
                self._hung(event)
            case _:
                pass  # an older generation's, or of no consequence

    def _started(self, event: dict[str, Any]) -> None:
        if event["type"] == "forked":
            self._view.pids = {**self._view.pids, f"rank-{event['rank']}": event["pid"]}
        elif event["rank"] == 0:
            self._view.mark(event["phase"], event["time"])
        if event.get("phase") == "initialized" and event["rank"] == 0:
            self._learn(parameters=event["parameters"])
        if event.get("phase") == "loaded" and event["rank"] == 0:
            self._view.steps, self._view.step = event["steps"], event["step"]
            self._fill_gap(event["step"], event["unsaved"])
            self._handle(ev.RanksReady(event["generation"], event["step"]))

    def _stepped(self, event: dict[str, Any]) -> None:
        if "stepped" not in self._view.timeline:
            self._view.mark("stepped", event["time"])
        self._view.stepped(event)
        values = {
            "loss": event["loss"],
            "learning_rate": event["learning_rate"],
            "gradient_norm": event["gradient_norm"],
            "tokens_per_s": event["tokens"] / event["step_s"],
            "data_wait_share": event["data_wait_s"] / event["step_s"],
            "step_s": event["step_s"],
        }
        self._tracker.metrics("train", event["step"], event["time"], values)
        self._handle(ev.Stepped(event["generation"], event["step"]))

    def _fill_gap(self, loaded_step: int, unsaved: list[dict[str, Any]]) -> None:
        """Reports that died with an agent are in the ledger, or came with the state that this generation has loaded."""
        if not loaded_step:
            return
        for record in [*ledger.read(self._stages.folder.ledger), *unsaved]:
            if record["step"] <= loaded_step:  # the tracker takes only what it does not have yet
                values = {key: record[key] for key in ("loss", "learning_rate", "gradient_norm")}
                self._tracker.metrics("train", record["step"], record["time"], values)
                if "evaluation" in record:
                    self._evaluated(record["step"], record["time"], record["evaluation"])

    def _evaluated(self, step: int, at: float, found: dict[str, Any]) -> None:
        metrics = {f"eval_{name}": value for name, value in found["metrics"].items()}
        self._tracker.metrics("eval", step, at, {"eval_loss": found["loss"], **metrics})
        self._view.eval_loss, self._view.metrics = found["loss"], found["metrics"]

    def _hung(self, event: dict[str, Any]) -> None:
        self._view.problem = event["message"]
        self._view.facts = {**self._view.facts, "lost_at": event["time"]}
        self._handle(ev.RankLost(event["generation"], Reason.HUNG, event["message"], event["time"]))

    def _lost(self, event: dict[str, Any]) -> None:
        reason = Reason(event.get("kind", Reason.RANK_KILLED))
        code = event["code"]
        how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
        detail = f"rank {event['rank']} {how}" + (f": {event['message']}" if "message" in event else "")
        if event.get("generation") == self._state.progress.generation:
            self._view.problem = detail
            self._view.facts = {**self._view.facts, "lost_at": event["time"]}
        self._handle(ev.RankLost(event["generation"], reason, detail, event["time"]))

    def _in_thread(self, work: Callable[[], None]) -> None:
        threading.Thread(target=self._guarded, args=(work,), name="run-work", daemon=True).start()
