"""The training loop of a rank: take a batch, do a step, evaluate, save."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from drivetrain_pipelines.stream.reader import Batch

from drivetrain_workers.checkpoints.manifest import Probe
from drivetrain_workers.checkpoints.save import SavePoint
from drivetrain_workers.engine.engine import StepResult
from drivetrain_workers.protocol.events import PredictionsWritten
from drivetrain_workers.protocol.step_record import Evaluation, StepRecord
from drivetrain_workers.rank.points import LoopPoints, StepOutcome
from drivetrain_workers.rank.setup import RankRun, probe_loss
from drivetrain_workers.records.predictions import write_predictions


def train_steps(run: RankRun, batches: Iterator[Batch], points: LoopPoints) -> None:
    """Train until all steps are done, or until the agent requests a stop; both end with a save.

    Raises:
        BadStepError, RewindError: a bad step.
        OSError, CheckpointError: a save failed.
    """
    while not run.complete:
        began = time.perf_counter()
        points.phase("data", run.step)
        batch = next(batch for batch in batches if not run.positions.skipped(batch.position))
        waited_s = time.perf_counter() - began
        points.phase("step", run.step)
        asked = run.link.stop_requested.is_set(), _save_is_due(run)
        result = run.engine.step(batch.columns, batch.position, *asked, busy=run.writer.is_busy)
        run.step += 1
        record = _record(run, batch, result)
        points.after_step(StepOutcome(record, batch, result.weights_finite, time.perf_counter() - began, waited_s))
        if run.step == run.steps or _is_due(run.step, run.training.eval_every):
            points.phase("evaluate", run.step)
            evaluation = _evaluate(run)
            record = replace(record, evaluation=evaluation)
            points.after_evaluation(run.step, evaluation)
        run.unsaved.append(record)
        if run.complete or result.stop_requested or result.save_requested or _is_due(run.step, run.checkpoint.every):
            points.phase("save", run.step)
            _save(run, batch)
            points.after_save(run.step)
        elif not result.busy and _is_due(run.step, run.checkpoint.memory_every):
            points.phase("copy", run.step)
            run.writer.copy(run.engine.deepspeed, _save_point(run, record))
        points.after_iteration(run.step, result.communicated_s)
        if result.stop_requested:
            return


def finish(run: RankRun, points: LoopPoints) -> None:
    """Wait until the last checkpoint is committed; no rank ends earlier. Raises OSError, CheckpointError."""
    points.phase("last save", run.step)
    run.writer.wait()
    run.barrier()
    points.after_iteration(run.step, 0.0)
    run.times.close()


def _record(run: RankRun, batch: Batch, result: StepResult) -> StepRecord:
    now = time.time()
    if run.step == 1:
        run.began = now
    return StepRecord(
        run.step,
        (batch.position, batch.position + run.plan.global_batch),
        run.plan.world_size,
        run.task.generation.number,
        now,
        result.loss,
        result.learning_rate,
        result.gradient_norm,
    )


def _evaluate(run: RankRun) -> Evaluation:
    """Evaluate on the eval split; rank 0 writes predictions."""
    part = run.data.evaluation(run.plan, run.task.rank)
    found = run.engine.evaluate(part)
    if run.engine.objective.has_predictions:
        predictions = run.engine.predict(part, run.training.predictions)
        if run.task.rank == 0:
            for path in write_predictions(run.folder.predictions, run.step, predictions):
                run.link.report(PredictionsWritten(run.task.id, str(path)))
    evaluation = Evaluation(found.loss, found.metrics, run.training.best.score(found.loss, found.metrics))
    run.early_stop.add(evaluation.score)
    return evaluation


def _save(run: RankRun, batch: Batch) -> None:
    """Start to save the state after the step on ``batch``."""
    probe = Probe(batch.position, probe_loss(run, batch)) if run.checkpoint.verify == "step" else None
    run.writer.save(run.engine.deepspeed, _save_point(run, run.unsaved[-1], probe))
    run.unsaved = []


def _save_point(run: RankRun, newest: StepRecord, probe: Probe | None = None) -> SavePoint:
    return SavePoint(newest.step, newest.positions[1], tuple(run.unsaved), run.history, probe)


def _save_is_due(run: RankRun) -> bool:
    return run.checkpoint.every == "auto" and run.task.rank == 0 and run.writer.is_due()


def _is_due(step: int, every: int | str | None) -> bool:
    return isinstance(every, int) and step % every == 0
