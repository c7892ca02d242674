"""The real loop of one run with its actions and listeners; gang, store and tracker are fakes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from drivetrain.cluster.protocols import AgentLostError, NodesGoneError
from drivetrain.coordinator.actions import Actions, PreparationCancelledError
from drivetrain.coordinator.agent_events import AgentEvents, AgentListener
from drivetrain.coordinator.live_run import LiveRun
from drivetrain.coordinator.observer import Observer
from drivetrain.coordinator.run_loop import RunLoop
from drivetrain.coordinator.scheduler import Scheduler
from drivetrain.errors import StoreUnavailableError
from drivetrain.runs import events as ev
from drivetrain.runs import states as st
from drivetrain.runs.facts import RunFacts
from drivetrain.runs.store import RunRecord
from drivetrain.scheduling.model import Node, Request
from drivetrain.scheduling.rules import Rules
from drivetrain_pipelines.errors import FetchError, InputError, PrepareError, UserCodeError
from drivetrain_workers.agent.event_log import LoggedEvent
from drivetrain_workers.protocol import events as protocol
from drivetrain_workers.protocol.events import RankId
from drivetrain_workers.protocol.messages import AgentSnapshot
from drivetrain_workers.protocol.reasons import Reason
from drivetrain_workers.protocol.step_record import Evaluation, StepRecord
from ray.exceptions import ActorDiedError

RUN = "toy-1"
REQUEST = Request(RUN, "ann", "default", 0, 0.0, 2, 2, 1.0, 0.0)
PLACE = st.Allocation((("n0", 1), ("n1", 1)), 5.0, 0)


class Store:
    """The record of a run; the next calls raise `error`."""

    def __init__(self, state: st.State) -> None:
        self.record = RunRecord(RUN, "f", 1.0, "s", state, RunFacts())
        self.saved: list[tuple[st.State, str]] = []
        self.error: list[Exception] = []

    def save(self, run: str, state: st.State, why: str) -> None:
        if self.error:
            raise self.error.pop()
        self.saved.append((state, why))
        self.record = replace(self.record, state=state)

    def update_facts(self, run: str, **changes: Any) -> None:
        self.record = replace(self.record, facts=self.record.facts.updated(**changes))

    def history(self, run: str) -> list[tuple[float, str, st.State]]:
        return [(1.0, why, state) for state, why in self.saved]

    def usage(self) -> tuple[dict[str, float], float]:
        return {}, 0.0

    def save_usage(self, shares: Any, now: float) -> None:
        pass


class Agent:
    """An agent that sends the events of the test."""

    def __init__(self, index: int, generation: int = 0) -> None:
        self.id, self.index, self.ranks = f"agent-{index}", index, 1
        self.generation, self.dead = generation, False
        self.calls: list[str] = []
        self.log: list[LoggedEvent] = []

    def snapshot(self) -> AgentSnapshot:
        self._check()
        return AgentSnapshot(100 + self.index, 200 + self.index, self.generation, {})

    def events(self, since: int, timeout_s: float) -> list[LoggedEvent]:
        self._check()
        return self.log[since:]

    def stop(self) -> None:
        self.calls.append("stop")

    def request_stop(self) -> None:
        self.calls.append("request_stop")

    def say(self, *events: protocol.AgentEvent) -> None:
        self.log += [LoggedEvent(len(self.log) + number, event) for number, event in enumerate(events)]

    def _check(self) -> None:
        if self.dead:
            raise AgentLostError(self.index, "its process is dead")


class Gang:
    """Two agents. Errors in ``outcomes`` are raised by the next placements."""

    def __init__(self) -> None:
        self.agents = [Agent(0), Agent(1)]
        self.outcomes: list[Exception | None] = []
        self.started: list[int] = []
        self.released: list[bool] = []
        self.while_placing: Callable[[], None] = lambda: None

    def place(self, dataset: str, placement: Any, wanted: Callable[[], bool]) -> Sequence[Agent]:
        self.while_placing()
        if self.outcomes and (outcome := self.outcomes.pop(0)):
            raise outcome
        return self.agents

    def attach(self, placement: Any) -> Sequence[Agent]:
        for agent in self.agents:
            agent._check()
        return self.agents

    def start(self, agents: Sequence[Agent], number: int) -> None:
        self.started.append(number)
        for agent in agents:
            agent._check()
            agent.generation = number

    def release(self, keep_copies: bool = False) -> None:
        self.released.append(keep_copies)


class Tracker:
    identity = {"mlflow_run_id": "m"}
    notes: tuple[str, ...] = ()
    problem = ""

    def __init__(self) -> None:
        self.logged: dict[tuple[str, int], dict[str, float]] = {}
        self.ended = ""
        self.late = 0  # calls of flush before everything is received

    def newest_step(self, series: str) -> int:
        return max((step for name, step in self.logged if name == series), default=0)

    def metrics(self, series: str, step: int, at: float, values: dict[str, float]) -> bool:
        if step <= self.newest_step(series):
            return False
        self.logged[series, step] = values
        return True

    def end(self, status: str) -> None:
        self.ended = status

    def flush(self, timeout_s: float) -> bool:
        self.late -= 1
        return self.late < 0

    def begin(self) -> None: ...
    def close(self) -> None: ...
    def tags(self, **values: object) -> None: ...
    def artifact(self, path: Path, folder: str | None = None) -> None: ...


class Work:
    """Preparation, conclusion and bookkeeping."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.version = "v1"
        self.unaccounted = False

    def prepare(self, on_progress: Callable[[int, int, str], None]) -> RunFacts:
        on_progress(1, 2, "making shards")
        if self.error:
            raise self.error
        return RunFacts(dataset="/data/v1", dataset_version=self.version)

    def conclude(self, agents: Any, dataset: str, entropy: float | None) -> RunFacts:
        if self.error:
            raise self.error
        return RunFacts(train_loss=0.5)

    def finish_uploads(self, agents: Any, timeout_s: float) -> str:
        return "s3://b lacks checkpoints"

    def log_checkpoints(self) -> None:
        if self.unaccounted:
            raise OSError("disk")

    def account(self, store: Any) -> dict[str, Any]:
        return {"wall_s": 1.0}


class Run:
    """A run in a given state with all its parts."""

    def __init__(self, state: st.State, folder: Path) -> None:
        self.now = 10.0
        self.store, self.gang, self.tracker, self.work = Store(state), Gang(), Tracker(), Work()
        nodes = [Node("n0", 4.0, 0.0), Node("n1", 4.0, 0.0)]
        self.scheduler = Scheduler(Rules, lambda: nodes, self.store, lambda: self.now)
        self.listeners: list[AgentListener] = []
        self.spent = ""
        parts: Any = (self.store.record, self.store, 0.0, None, lambda: self.now)
        self.live = LiveRun(*parts)
        tracker: Any = self.tracker
        handle = self.scheduler.handle_of(REQUEST)
        observer = Observer(self.live, tracker, folder / "ledger")
        agents = AgentEvents(self.live, observer, handle, self.listeners.append)
        shared: Any = (self.live, self.store, self.gang, agents, handle, tracker, *[self.work] * 3)
        self.actions = Actions(*shared, spawn=lambda work: work(), sleep=lambda seconds: None)
        self.loop = RunLoop(self.live, self.actions, handle, tracker, lambda joules: self.spent)
        self.loop.begin()

    def iterate(self, *events: ev.Event) -> Run:
        """Process each event and all resulting events."""
        for event in events:
            self.live.post(event)
            self._drain()
        self._drain()
        return self

    def _drain(self) -> None:
        while not self.live.inbox.empty():  # type: ignore[attr-defined]  # a SimpleQueue
            self.loop.iterate()

    def listen(self) -> Run:
        for listener in self.listeners:
            if not listener.ended:
                listener.poll(0.0)
        return self.iterate()

    @property
    def state(self) -> st.State:
        assert self.live.state == self.store.record.state or self.live.state.progress.step  # stored, but for progress
        return self.live.state


@pytest.fixture
def fresh(tmp_path: Path) -> Run:
    return Run(st.Queued(), tmp_path)


@pytest.fixture
def training(tmp_path: Path) -> Run:
    run = Run(st.Starting("/data/v1", PLACE, progress=st.Progress(generation=1)), tmp_path)
    run.iterate()
    run.gang.agents[0].say(protocol.RankLoaded(RankId(0, 1), 0, 40))
    return run.listen()


def step_done(step: int, generation: int = 1, evaluation: Evaluation | None = None) -> protocol.StepDone:
    positions = (8 * step - 8, 8 * step)
    record = StepRecord(step, positions, 2, generation, 10.0 + step, 1 / step, 0.1, 1.0, evaluation)
    return protocol.StepDone(RankId(0, generation), record, 0.5, 0.1, 100)


def test_a_run_from_its_beginning_to_its_end(fresh: Run) -> None:
    fresh.scheduler.run_pass()
    fresh.iterate()
    assert isinstance(fresh.state, st.Ready)
    fresh.scheduler.run_pass()
    fresh.iterate()
    assert isinstance(fresh.state, st.Starting)
    assert fresh.gang.started == [1]
    first, second = fresh.gang.agents
    assert fresh.loop.view(-1, 0).pids["agent-1"] == 101
    first.say(protocol.RankForked(RankId(0, 1), 7), protocol.RankLoaded(RankId(0, 1), 0, 2), step_done(1), step_done(2))
    second.say(protocol.RankForked(RankId(1, 1), 8))
    fresh.listen()
    view = fresh.loop.view(-1, 0)
    assert (view.phase, view.step, view.steps, view.loss) == ("training", 2, 2, 0.5)
    assert {view.pids[f"rank-{rank}"] for rank in (0, 1)} == {7, 8}
    first.say(
        protocol.CheckpointCommitted(RankId(0, 1), 2, "/run/checkpoints/2", 1, 0.0, 0.0),
        protocol.TrainingFinished(RankId(0, 1), True, 100, 50),
    )
    fresh.listen()
    assert fresh.state == st.Ended(Reason.COMPLETED, "", progress=fresh.state.progress)
    assert fresh.loop.ended
    facts = fresh.store.record.facts
    assert (facts.reason, facts.train_loss, facts.peak_bytes) == ("completed", 0.5, 100)
    assert (facts.released, facts.tracked, facts.mlflow_run_id) == (True, True, "m")
    assert not facts.problem
    assert fresh.tracker.ended == "FINISHED"
    phases = [state.phase for state, _ in fresh.store.saved]
    assert phases == ["preparing", "ready", "placing", "starting", "training", "finishing", "ended"]


@pytest.mark.parametrize(("late", "tracked"), [(0, True), (3, True), (99, False)])
def test_a_wait_for_mlflow_is_shown(late: int, tracked: bool, training: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(training.live, "show_waiting", said.append)
    training.tracker.late, training.tracker.problem = late, "connection refused"
    training.live.view.waiting = "1 of 2 CPUs are free"
    finished = protocol.TrainingFinished(RankId(0, 1), True, 100, 50)
    training.gang.agents[0].say(protocol.RankLoaded(RankId(0, 1), 0, 2), step_done(1), step_done(2), finished)
    training.listen()
    assert training.store.record.facts.tracked is tracked
    assert training.live.view.waiting == ""
    assert len(said) == min(late, 12)
    assert all(line.endswith("s more: connection refused") for line in said)


def test_a_state_is_stored_before_it_is_acted_on(fresh: Run) -> None:
    seen: list[str] = []
    fresh.gang.while_placing = lambda: seen.append(fresh.store.record.state.phase)
    fresh.scheduler.run_pass()
    fresh.iterate()
    fresh.scheduler.run_pass()
    fresh.iterate()
    assert seen == ["placing"]


def test_an_unavailable_database_delays_a_run(fresh: Run) -> None:
    fresh.store.error = [StoreUnavailableError("connection refused")] * 3
    fresh.iterate(ev.Admitted())
    assert isinstance(fresh.state, st.Ready)
    assert "connection refused" in fresh.loop.view(-1, 0).problem


def test_a_fault_of_our_own_ends_the_run_with_its_words(fresh: Run) -> None:
    fresh.store.error = [KeyError("x")]
    fresh.iterate(ev.Admitted())
    assert fresh.store.record.facts.reason == "internal"
    assert fresh.store.record.facts.detail == "KeyError: 'x'"


def test_data_that_cannot_be_prepared_ends_the_run(fresh: Run) -> None:
    fresh.work.error = PrepareError("no text")
    fresh.iterate(ev.Admitted())
    assert fresh.store.record.facts.reason == "prepare_failed"
    assert fresh.store.record.facts.problem == "s3://b lacks checkpoints"


@pytest.mark.parametrize(
    ("error", "reason", "detail"),
    [
        (UserCodeError("data.transform", "OSError: x", "clean.py:2, in upper"), "user_code", "data.transform raised"),
        (InputError("data.source", "'s3://b'", "credentials"), "prepare_failed", "data.source: got 's3://b'"),
        (FetchError("s3://b/x", 0, "cut"), "storage", "block 0 of s3://b/x"),
        (OSError(28, "No space left on device"), "storage", "[Errno 28] No space left on device"),
        (ActorDiedError(), "internal", "its process died"),
        (KeyError("x"), "internal", "KeyError: 'x'"),
        (SystemExit(0), "internal", "SystemExit: 0"),
    ],
)
def test_every_error_of_preparing_ends_the_run(fresh: Run, error: BaseException, reason: str, detail: str) -> None:
    """The run waits for the thread that prepares: it must not end in silence."""
    fresh.work.error = error
    fresh.iterate(ev.Admitted())
    facts = fresh.store.record.facts
    assert (facts.reason, facts.released) == (reason, True)
    assert facts.detail.startswith(detail)


def test_a_cancelled_run_stops_preparing(tmp_path: Path) -> None:
    """The thread must not hold actors and the lock of the dataset when no user wants its result."""
    run = Run(st.Preparing(), tmp_path)
    run.iterate(ev.CancelRequested())
    assert isinstance(run.state, st.Ended)
    with pytest.raises(PreparationCancelledError):
        run.actions._show_progress(1, 2, "making shards")


def test_data_that_has_changed_ends_the_run(tmp_path: Path) -> None:
    run = Run(st.Queued(), tmp_path)
    run.live.update_facts(dataset_version="v0")
    run.iterate(ev.Admitted())
    assert "the data has changed from version v0 to v1" in run.store.record.facts.detail


@pytest.mark.parametrize(
    ("outcomes", "phase"),
    [
        ([NodesGoneError(["n1"])], "ready"),
        ([AgentLostError(1, "it died")], "starting"),
        ([AgentLostError(1, "it died")] * 2, "starting"),
        ([AgentLostError(1, "it died")] * 3, "ready"),
        ([RuntimeError("no group")], "ended"),
    ],
)
def test_outcomes_of_placing(fresh: Run, outcomes: list[Exception | None], phase: str) -> None:
    fresh.gang.outcomes = outcomes
    fresh.iterate(ev.Admitted(), ev.AllocationGranted(PLACE))
    assert fresh.state.phase == phase


def test_agents_of_an_outdated_allocation_are_not_used(fresh: Run) -> None:
    fresh.gang.while_placing = lambda: fresh.live.post(ev.PreemptionRequested("somebody else needs it"))
    fresh.iterate(ev.Admitted(), ev.AllocationGranted(PLACE))
    assert isinstance(fresh.state, st.Ready)
    assert fresh.gang.started == []
    assert fresh.listeners == []


def test_agents_that_come_after_a_cancel_are_released(fresh: Run) -> None:
    fresh.gang.while_placing = lambda: fresh.live.post(ev.CancelRequested())
    fresh.iterate(ev.Admitted(), ev.AllocationGranted(PLACE))
    assert fresh.store.record.facts.reason == "cancelled"
    assert fresh.gang.started == []


def test_a_lost_rank_starts_the_next_generation(training: Run) -> None:
    training.gang.agents[0].say(step_done(1))
    training.gang.agents[1].say(protocol.RankEnded(RankId(1, 1), -9, Reason.RANK_KILLED))
    training.listen()
    assert training.gang.started == [1, 2]
    assert "rank 1 was killed by signal 9" in training.loop.view(-1, 0).problem
    training.gang.agents[0].say(protocol.RankEnded(RankId(0, 1), 1, Reason.COLLECTIVE))  # of the previous generation
    training.listen()
    assert training.gang.started == [1, 2]


def test_a_rank_that_hangs_is_replaced(training: Run) -> None:
    training.gang.agents[1].say(protocol.RankHung(RankId(1, 1), "rank 1 makes no progress"))
    training.listen()
    assert training.gang.started == [1, 2]


def test_a_dead_agent_is_replaced(training: Run) -> None:
    training.gang.agents[1].dead = True
    training.gang.outcomes = [AgentLostError(1, "it died")] * 3
    training.listen()
    assert isinstance(training.state, st.Ready)
    assert training.gang.released[-1] is True  # the other node keeps its copies


def test_a_dead_agent_that_has_been_replaced_is_ignored(training: Run) -> None:
    stale = training.listeners[1]
    training.gang.agents[1] = Agent(1)
    training.iterate(ev.AgentLost(1, "its process is dead"))
    assert training.gang.started == [1, 2]
    stale.agent.dead = True  # type: ignore[attr-defined]
    stale.poll(0.0)
    training.iterate()
    assert training.gang.started == [1, 2]


def test_a_step_is_logged_once(training: Run) -> None:
    training.gang.agents[0].say(step_done(1), step_done(2), step_done(2), step_done(1))
    training.listen()
    assert [key for key in training.tracker.logged if key[0] == "train"] == [("train", 1), ("train", 2)]
    assert training.tracker.logged["train", 2]["tokens_per_s"] == 200.0


def test_steps_whose_report_was_lost_come_with_the_loaded_state(training: Run) -> None:
    training.gang.agents[0].say(step_done(1))
    unsaved = tuple(
        step_done(step, evaluation=Evaluation(0.3, {"accuracy": 0.9}, 0.3) if step == 2 else None).record
        for step in (1, 2, 3)
    )
    training.iterate(ev.RankLost(1, Reason.RANK_KILLED, "killed", 10.0))
    training.gang.agents[0].say(protocol.RankLoaded(RankId(0, 2), 3, 40, unsaved))
    training.listen()
    assert {step for series, step in training.tracker.logged if series == "train"} == {1, 2, 3}
    assert training.tracker.logged["eval", 2] == {"eval_loss": 0.3, "eval_accuracy": 0.9}


def test_cancelling_has_the_ranks_save_and_end(training: Run) -> None:
    training.loop.cancel()
    training.iterate()
    assert training.gang.agents[0].calls == training.gang.agents[1].calls == ["request_stop"]
    training.gang.agents[0].say(protocol.TrainingFinished(RankId(0, 1), False, 1, 1))
    training.listen()
    assert training.store.record.facts.reason == "cancelled"
    assert training.tracker.ended == "KILLED"


def test_a_spent_budget_stops_the_run(training: Run) -> None:
    training.spent = "budget.hours of 1 is spent"
    training.iterate(ev.Tick(11.0))
    assert isinstance(training.state, st.Training)  # it is checked every two seconds
    training.now += 3.0
    training.iterate(ev.Tick(14.0))
    assert training.state == st.Stopping(
        "/data/v1", PLACE, "", Reason.BUDGET_SPENT, training.spent, 14.0 + 1800, progress=training.state.progress
    )


@pytest.mark.parametrize(
    ("generations", "dead", "started", "phase"),
    [
        ((0, 0), False, [1], "starting"),  # no stop was requested
        ((1, 1), False, [], "starting"),
        ((1, 0), False, [2], "starting"),  # half of them were
        ((1, 1), True, [2], "starting"),  # its agent has died: a new one on the same allocation
    ],
)
def test_a_coordinator_that_was_restarted_finds_the_agents(
    tmp_path: Path, generations: tuple[int, int], dead: bool, started: list[int], phase: str, monkeypatch: Any
) -> None:
    def gang(init: Any = Gang.__init__) -> Callable[[Gang], None]:
        def make(self: Gang) -> None:
            init(self)
            self.agents = [Agent(index, generation) for index, generation in enumerate(generations)]
            self.agents[1].dead = dead
            self.while_placing = lambda: setattr(self.agents[1], "dead", False)

        return make

    monkeypatch.setattr(Gang, "__init__", gang())
    run = Run(st.Starting("/data/v1", PLACE, progress=st.Progress(generation=1)), tmp_path).iterate()
    assert (run.gang.started, run.state.phase) == (started, phase)


def test_failures_at_the_end_are_reported_individually(training: Run) -> None:
    training.work.error, training.work.unaccounted = OSError("no space"), True
    training.gang.agents[0].say(protocol.TrainingFinished(RankId(0, 1), True, 1, 1))
    training.listen()
    facts = training.store.record.facts
    assert (facts.reason, facts.released) == ("completed", True)
    assert facts.problem == "the account of the run is incomplete: disk"
    assert training.gang.released == [False]


def test_an_older_generation_changes_no_figures(training: Run) -> None:
    """The steps of an older generation are repeated by its successor."""
    training.iterate(ev.RankLost(1, Reason.RANK_KILLED, "killed", 10.0))
    training.gang.agents[0].say(
        step_done(9, generation=1), protocol.RankForked(RankId(0, 1), 77), protocol.RankHung(RankId(0, 1), "hangs")
    )
    training.listen()
    view = training.loop.view(-1, 0)
    assert ("train", 9) not in training.tracker.logged
    assert (view.step, view.loss) == (0, None)
    assert 77 not in view.pids.values()
    assert training.gang.started == [1, 2]


def test_the_wait_before_a_retry_does_not_depend_on_a_node_s_clock(training: Run) -> None:
    for generation in (1, 2):
        wrong = protocol.RankEnded(RankId(0, generation), -9, Reason.RANK_KILLED, time=training.now + 1e9)
        training.gang.agents[0].say(wrong)
        training.listen()
    assert isinstance(training.state, st.Waiting)
    training.iterate(ev.Tick(training.now + 0.5))
    assert isinstance(training.state, st.Waiting)
    training.iterate(ev.Tick(training.now + 1.5))
    assert training.gang.started == [1, 2, 3]
