"""The real training loop of one rank, with an engine, batches and a writer that only record."""

from __future__ import annotations

import itertools
import json
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from drivetrain_pipelines.stream.reader import Batch
from drivetrain_workers.checkpoints.manifest import Manifest, Probe
from drivetrain_workers.checkpoints.save import SavePoint
from drivetrain_workers.engine.batching import BatchPlan
from drivetrain_workers.engine.engine import Evaluation as Evaluated
from drivetrain_workers.engine.engine import StepResult
from drivetrain_workers.errors import BadStepError, RewindError
from drivetrain_workers.protocol.events import (
    AgentEvent,
    EvaluationDone,
    PredictionsWritten,
    ProblemFound,
    RankId,
    StepDone,
)
from drivetrain_workers.protocol.messages import Endpoint, Generation, RankTask
from drivetrain_workers.protocol.step_record import Evaluation
from drivetrain_workers.rank.guards import EarlyStop, LossGuard
from drivetrain_workers.rank.loop import finish, train_steps
from drivetrain_workers.rank.parts import standard_points
from drivetrain_workers.rank.setup import RankRun
from drivetrain_workers.records.adjustments import Adjustments, Skip
from drivetrain_workers.records.step_times import StepTimes, read_iterations
from drivetrain_workers.spec import CheckpointSpec, TrainingSpec

GLOBAL_BATCH = 8
TRAINING = TrainingSpec(steps=10, global_batch_size=GLOBAL_BATCH, eval_every=100)
CHECKPOINT = CheckpointSpec(every=100)


def loss_at(position: int) -> float:
    """Return a loss that decreases slowly, and depends only on the batch."""
    return 2.0 - position / 10_000


@dataclass
class Engine:
    """Returns losses instead of computing them.

    Attributes:
        losses: exceptional losses, by position.
        scores: scores of the next evaluations.
        broken: positions after which weights are not finite.
    """

    losses: dict[int, float] = field(default_factory=dict)
    scores: Iterator[float] = field(default_factory=lambda: itertools.repeat(1.0))
    has_predictions: bool = False
    deepspeed: Any = None
    positions: list[int] = field(default_factory=list)
    broken: tuple[int, ...] = ()

    @property
    def objective(self) -> Any:
        return SimpleNamespace(has_predictions=self.has_predictions)

    def step(self, columns: Any, position: int, stop_requested: bool, save_requested: bool, busy: bool) -> StepResult:
        self.positions.append(position)
        loss = self.losses.get(position, loss_at(position))
        finite = position not in self.broken
        return StepResult(loss, 1.0, finite, 0.1, stop_requested, save_requested, busy, 0.0)

    def evaluate(self, part: Any, metrics: bool = True) -> Evaluated:
        return Evaluated(next(self.scores), {"accuracy": 0.5}) if metrics else Evaluated(7.0, {})

    def predict(self, part: Any, max_rows: int) -> dict[str, Any]:
        return {"label": [1, 2]}


@dataclass
class Link:
    """Records reports, and other events whose order matters."""

    log: list[Any] = field(default_factory=list)
    stop_requested: threading.Event = field(default_factory=threading.Event)

    def report(self, event: AgentEvent) -> None:
        self.log.append(event)

    def enter(self, phase: str, step: int) -> None:
        self.log.append((phase, step))

    def events(self, kind: type[AgentEvent]) -> list[Any]:
        return [event for event in self.log if isinstance(event, kind)]


@dataclass
class Writer:
    """Records the requested saves."""

    log: list[Any]
    due: Callable[[], bool] = lambda: False
    is_busy: bool = False
    saved: list[SavePoint] = field(default_factory=list)
    copied: list[SavePoint] = field(default_factory=list)

    def is_due(self) -> bool:
        return self.due()

    def save(self, engine: Any, point: SavePoint) -> None:
        self.saved.append(point)

    def copy(self, engine: Any, point: SavePoint) -> None:
        self.copied.append(point)

    def wait(self) -> None:
        self.log.append("wait")


class Data:
    def evaluation(self, plan: BatchPlan, rank: int) -> None:
        return None


def batches(start: int = 0) -> Iterator[Batch]:
    for position in itertools.count(start, GLOBAL_BATCH):
        yield Batch(position, {"tokens": np.zeros((4, 17), np.int64)}, {})


def a_run(folder: Path, rank: int = 0, **changes: Any) -> Any:
    """Return one rank's part of a run of two ranks; ``changes`` replace fields of `RankRun`."""
    generation = Generation(3, 2, "file:///nowhere")
    task = RankTask(Endpoint("", ""), rank, rank, 2, generation, str(folder), "", "")
    link = Link()
    training = changes.get("training", TRAINING)
    parts = {
        "task": task,
        "link": link,
        "plan": BatchPlan(GLOBAL_BATCH, 2, 4, 1),
        "engine": Engine(),
        "writer": Writer(link.log),
        "checkpoint": CHECKPOINT,
        "training": training,
        "data": Data(),
        "adjustments": Adjustments(),
        "times": StepTimes(None, 3),
        "guard": LossGuard(training.guard, []),
        "early_stop": EarlyStop(training.early_stop),
        "steps": training.steps,
        "began": 0.0,
        "base_bytes": 0,
        "barrier": lambda: link.log.append("barrier"),
    }
    return RankRun(**{**parts, **changes})


def train(run: Any) -> Any:
    train_steps(run, batches(run.positions.start(run.step)), standard_points(run))
    return run


def training(**settings: Any) -> TrainingSpec:
    return TrainingSpec(**{"steps": 10, "global_batch_size": GLOBAL_BATCH, "eval_every": 100, **settings})


def test_steps_are_reported_with_their_positions(tmp_path: Path) -> None:
    run = train(a_run(tmp_path))
    assert run.complete
    done = run.link.events(StepDone)
    assert [event.source for event in done] == [RankId(0, 3)] * 10
    assert [event.record.step for event in done] == list(range(1, 11))
    assert [event.record.positions for event in done] == [(8 * n, 8 * n + 8) for n in range(10)]
    assert [event.record.loss for event in done] == [loss_at(8 * n) for n in range(10)]
    assert {(event.record.world_size, event.record.generation, event.tokens) for event in done} == {(2, 3, 8 * 16)}
    assert all(0 <= event.data_wait_s <= event.step_s for event in done)
    assert run.began == done[0].record.time
    assert train(a_run(tmp_path, rank=1)).link.events(AgentEvent) == []


def test_evaluations_are_due_by_step_and_at_the_end(tmp_path: Path) -> None:
    run = train(a_run(tmp_path, training=training(eval_every=4)))
    expected = Evaluation(1.0, {"accuracy": 0.5}, 1.0)
    assert [(event.step, event.evaluation) for event in run.link.events(EvaluationDone)] == [
        (step, expected) for step in (4, 8, 10)
    ]
    (saved,) = run.writer.saved
    assert [record.step for record in saved.records if record.evaluation == expected] == [4, 8, 10]
    assert saved.evaluation == expected
    assert (run.early_stop.best, run.early_stop.since_best) == (1.0, 2)


def test_saves_are_due_by_step_and_at_the_end(tmp_path: Path) -> None:
    run = train(a_run(tmp_path, checkpoint=CheckpointSpec(every=4)))
    assert [(point.step, point.position) for point in run.writer.saved] == [(4, 32), (8, 64), (10, 80)]
    steps = [[record.step for record in point.records] for point in run.writer.saved]
    assert steps == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]
    assert run.unsaved == []
    first = run.writer.saved[0]
    assert first.evaluation is None
    assert first.probe is None
    assert first.history.losses == tuple(loss_at(8 * n) for n in range(4))
    assert first.history.began == first.records[0].time


def test_rank_0_decides_when_a_save_is_due(tmp_path: Path) -> None:
    def due_after(*steps: int) -> Any:
        count = itertools.count(1)
        return lambda: next(count) in steps

    checkpoint = CheckpointSpec(every="auto")
    first = train(a_run(tmp_path, checkpoint=checkpoint, writer=Writer([], due=due_after(3, 7))))
    assert [point.step for point in first.writer.saved] == [3, 7, 10]
    other = train(a_run(tmp_path, rank=1, checkpoint=checkpoint, writer=Writer([], due=lambda: True)))
    assert [point.step for point in other.writer.saved] == [10]


def test_a_request_to_stop_saves_and_ends(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    points = standard_points(run)
    points.after_iteration.attach(lambda step, _: run.link.stop_requested.set() if step == 3 else None)
    train_steps(run, batches(), points)
    assert (run.step, run.complete) == (4, False)
    assert [point.step for point in run.writer.saved] == [4]


def test_a_run_that_stops_improving_ends_early(tmp_path: Path) -> None:
    spec = training(eval_every=2, early_stop={"patience": 2})
    run = train(a_run(tmp_path, training=spec, engine=Engine(scores=iter([3.0, 2.0, 2.5, 2.0]))))
    assert (run.step, run.complete) == (8, True)
    assert [point.step for point in run.writer.saved] == [8]
    again = a_run(tmp_path, training=spec, step=8, early_stop=EarlyStop(spec.early_stop, 2.0, 2))
    assert train(again).engine.positions == []


def test_skipped_batches_are_not_trained_on(tmp_path: Path) -> None:
    adjustments = Adjustments((Skip(16, 24, 3, "loss nan"), Skip(40, 48, 5, "loss nan")))
    run = train(a_run(tmp_path, training=training(steps=5), adjustments=adjustments))
    assert run.engine.positions == [0, 8, 24, 32, 48]
    resumed = train(a_run(tmp_path, training=training(steps=5), adjustments=adjustments, step=3))
    assert resumed.engine.positions == [32, 48]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("loss", "kind"), [(math.nan, "non_finite"), (50.0, "spike")])
def test_a_bad_step_is_rewound(tmp_path: Path, rank: int, loss: float, kind: str) -> None:
    """The current save is completed first, and the batch is recorded for the next generation."""
    spec = training(steps=40, guard={kind: "rewind", "max_rewinds": 1})
    changes = {"training": spec, "checkpoint": CheckpointSpec(every=5), "engine": Engine(losses={19 * 8: loss})}
    run = a_run(tmp_path, rank, **changes)
    with pytest.raises(RewindError, match="step 20"):
        train(run)
    assert [entry for entry in run.link.log if isinstance(entry, str)] == ["wait", "barrier"]
    assert [point.step for point in run.writer.saved] == [5, 10, 15]
    assert [record.step for record in run.unsaved] == [16, 17, 18, 19]
    assert 20 not in [event.record.step for event in run.link.events(StepDone)]
    skips = Adjustments.read(run.folder.adjustments).skips
    assert [(skip.start, skip.stop, skip.step) for skip in skips] == ([(152, 160, 20)] if rank == 0 else [])
    once_more = a_run(tmp_path, rank, **changes, adjustments=Adjustments((Skip(0, 8, 1, ""),)))
    with pytest.raises(BadStepError, match="step 19"):
        train(once_more)


@pytest.mark.parametrize(("loss", "kind"), [(math.nan, "non_finite"), (50.0, "spike")])
def test_a_bad_step_stops_the_run(tmp_path: Path, loss: float, kind: str) -> None:
    run = a_run(tmp_path, training=training(steps=40, guard={kind: "stop"}), engine=Engine(losses={19 * 8: loss}))
    with pytest.raises(BadStepError, match=rf"step 20: .*training\.guard\.{kind}"):
        train(run)
    assert run.step == 20
    assert not run.folder.adjustments.exists()


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("policy", "error"), [("stop", BadStepError), ("warn", BadStepError), ("rewind", RewindError)])
def test_weights_that_are_not_finite_are_never_saved(
    tmp_path: Path, rank: int, policy: str, error: type[Exception]
) -> None:
    """Not even where a bad step only causes a warning."""
    spec = training(guard={"non_finite": policy})
    changes = {"training": spec, "checkpoint": CheckpointSpec(every=1, memory_every=1)}
    run = a_run(tmp_path, rank, **changes, engine=Engine(broken=(32,)))
    with pytest.raises(error, match="step 5: a weight is NaN or infinite after the update"):
        train(run)
    assert [point.step for point in run.writer.saved] == [1, 2, 3, 4]


@pytest.mark.parametrize(("loss", "kind"), [(math.inf, "non_finite"), (50.0, "spike")])
def test_a_bad_step_causes_a_warning(tmp_path: Path, loss: float, kind: str) -> None:
    spec = training(steps=40, guard={kind: "warn"})
    run = train(a_run(tmp_path, training=spec, engine=Engine(losses={19 * 8: loss})))
    assert run.complete
    (problem,) = run.link.events(ProblemFound)
    assert problem.message.startswith("step 20: loss")
    (saved,) = run.writer.saved
    assert [record.loss for record in saved.records][19] == loss
    assert loss not in saved.history.losses
    quiet = train(a_run(tmp_path, 1, training=spec, engine=Engine(losses={19 * 8: loss})))
    assert quiet.link.events(ProblemFound) == []


def test_copies_in_memory_have_the_records_that_no_checkpoint_has(tmp_path: Path) -> None:
    checkpoint = CheckpointSpec(every=5, memory_every=2)
    run = train(a_run(tmp_path, checkpoint=checkpoint))
    copies = [(point.step, point.position, [r.step for r in point.records]) for point in run.writer.copied]
    assert copies == [(2, 16, [1, 2]), (4, 32, [1, 2, 3, 4]), (6, 48, [6]), (8, 64, [6, 7, 8])]
    assert [point.step for point in run.writer.saved] == [5, 10]
    busy = train(a_run(tmp_path, checkpoint=checkpoint, writer=Writer([], is_busy=True)))
    assert busy.writer.copied == []
    assert [point.step for point in busy.writer.saved] == [5, 10]


def test_a_probe_is_saved_if_the_job_requests_one(tmp_path: Path) -> None:
    run = train(a_run(tmp_path, checkpoint=CheckpointSpec(every=5, verify="step"), training=training(steps=5)))
    assert run.writer.saved[0].probe == Probe(32, 7.0)


def test_everything_happens_in_order(tmp_path: Path) -> None:
    run = a_run(
        tmp_path,
        training=training(steps=3, eval_every=2),
        checkpoint=CheckpointSpec(every=2, memory_every=1),
        times=StepTimes(tmp_path / "times", 3),
    )
    run.engine.has_predictions = True
    points = standard_points(run)
    points.after_save.attach(lambda step: run.link.log.append(f"saved {step}"))
    points.after_iteration.attach(lambda step, _: run.link.log.append(f"done {step}"))
    train_steps(run, batches(), points)
    finish(run, points)
    assert [type(entry) if isinstance(entry, AgentEvent) else entry for entry in run.link.log] == [
        *[("data", 0), ("step", 0), StepDone, ("copy", 1), "done 1"],
        *[("data", 1), ("step", 1), StepDone, ("evaluate", 2), PredictionsWritten, EvaluationDone],
        *[("save", 2), "saved 2", "done 2"],
        *[("data", 2), ("step", 2), StepDone, ("evaluate", 3), PredictionsWritten, EvaluationDone],
        *[("save", 3), "saved 3", "done 3"],
        *[("last save", 3), "wait", "barrier", "done 3"],
    ]
    (turns,) = read_iterations(tmp_path / "times").values()
    assert turns["step"].tolist() == [1, 2, 3, 3]
    assert Path(run.link.events(PredictionsWritten)[0].path).exists()


def test_an_interrupted_run_makes_the_same_decisions(tmp_path: Path) -> None:
    """At every step: the history in the manifest is sufficient, and its size does not grow."""
    spec = training(steps=60, eval_every=3, early_stop={"patience": 4}, guard={"window": 8, "spike": "warn"})
    losses = {8 * step: 9.0 for step in (20, 21, 22, 40)}
    scores = [5.0, 4.0, 4.5, 3.0, 3.5, 2.0, 2.5, 2.25, 2.0, 3.0, 1.0]
    every = CheckpointSpec(every=1)
    whole = train(a_run(tmp_path, training=spec, checkpoint=every, engine=Engine(losses, iter(scores))))
    assert whole.step == 30
    for saved in whole.writer.saved:
        manifest = Manifest(saved.step, saved.position, 2, 1, {}, history=saved.history)
        history = Manifest.from_json(json.loads(json.dumps(manifest.to_json()))).history
        assert history
        assert len(history.losses) <= 8
        resumed = train(
            a_run(
                tmp_path,
                training=spec,
                checkpoint=every,
                engine=Engine(losses, iter(scores[saved.step // 3 :])),
                step=saved.step,
                began=history.began,
                guard=LossGuard(spec.guard, history.losses),
                early_stop=EarlyStop(spec.early_stop, history.best, history.since_best),
            )
        )
        assert resumed.step == whole.step
        assert resumed.history == whole.history
        later = [event.message for event in whole.link.events(ProblemFound)]
        assert [event.message for event in resumed.link.events(ProblemFound)] == [
            message for message in later if int(message.split(":")[0].removeprefix("step ")) > saved.step
        ]
        untimed = [[replace(record, time=0.0) for record in point.records] for point in resumed.writer.saved]
        assert untimed == [
            [replace(record, time=0.0) for record in point.records]
            for point in whole.writer.saved
            if point.step > saved.step
        ]
