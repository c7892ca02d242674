"""Standard callbacks of the training loop: heartbeats, times, the guard, reports."""

from __future__ import annotations

from functools import partial

import numpy as np
from drivetrain_pipelines.stream.reader import Batch

from drivetrain_workers.errors import BadStepError, RewindError
from drivetrain_workers.protocol.events import EvaluationDone, ProblemFound, StepDone
from drivetrain_workers.protocol.step_record import Evaluation
from drivetrain_workers.rank.points import LoopPoints, StepOutcome
from drivetrain_workers.rank.setup import RankRun
from drivetrain_workers.records.adjustments import Skip

# Parts of `StepTimes`, by the phases of the loop.
_TIMED_AS = {
    "data": "data",
    "step": "compute",
    "evaluate": "evaluate",
    "save": "save",
    "copy": "save",
    "last save": "save",
}


def standard_points(run: RankRun) -> LoopPoints:
    """Return the points of the loop with the standard callbacks."""
    points = LoopPoints()
    points.phase.attach(run.link.enter)
    points.phase.attach(lambda phase, _: run.times.enter(_TIMED_AS[phase]))
    points.after_step.attach(partial(_guard, run))
    if run.task.rank == 0:
        points.after_step.attach(partial(_report_step, run))
        points.after_evaluation.attach(partial(_report_evaluation, run))
    points.after_iteration.attach(run.times.end_iteration)
    return points


def _guard(run: RankRun, outcome: StepOutcome) -> None:
    """Check the loss, and handle a bad step as the job specifies; every rank does the same.

    Raises:
        BadStepError, RewindError: the generation ends here.
    """
    record, spec = outcome.record, run.training.guard
    alarm = run.guard.check(record.loss, record.gradient_norm, outcome.weights_finite)
    if alarm is None:
        return
    policy = {"non_finite": spec.non_finite, "spike": spec.spike}[alarm.kind]
    if policy == "warn" and not alarm.fatal:
        if run.task.rank == 0:
            run.link.report(ProblemFound(f"step {record.step}: {alarm.detail}"))
        return
    if policy != "rewind" or len(run.adjustments.skips) >= spec.max_rewinds:
        raise BadStepError(record.step, alarm.kind, alarm.detail)
    run.writer.wait()  # a save that began before this step may be the newer checkpoint
    if run.task.rank == 0:
        skip = Skip(*record.positions, record.step, alarm.detail)
        run.adjustments.with_skip(skip).write(run.folder.adjustments)
    run.barrier()
    raise RewindError(record.step, alarm.detail)


def _report_step(run: RankRun, outcome: StepOutcome) -> None:
    tokens = _tokens(outcome.batch) * run.plan.global_batch
    run.link.report(StepDone(run.task.id, outcome.record, outcome.step_s, outcome.data_wait_s, tokens))


def _report_evaluation(run: RankRun, step: int, evaluation: Evaluation) -> None:
    run.link.report(EvaluationDone(run.task.id, step, evaluation))


def _tokens(batch: Batch) -> int:
    """Return the number of tokens per sample; 1 where samples are not token sequences."""
    tokens = batch.columns.get("tokens")
    return tokens.shape[1] - 1 if isinstance(tokens, np.ndarray) else 1
