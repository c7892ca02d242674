"""The disposable rank process: join the gang, load the newest checkpoint, train, report."""

from __future__ import annotations

import os
import random
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from drivetrain_pipelines.order.permutation import mix_key
from drivetrain_pipelines.spec import DataSpec
from drivetrain_pipelines.stream.reader import Batch

from drivetrain_workers.checkpoints.agreement import agree_on_checkpoint
from drivetrain_workers.checkpoints.load import Checkpoint, restore
from drivetrain_workers.checkpoints.memory_copies import MemoryCopies
from drivetrain_workers.checkpoints.proof import prove_loss, prove_state
from drivetrain_workers.checkpoints.remote import RemoteCheckpoints
from drivetrain_workers.checkpoints.save import CheckpointWriter
from drivetrain_workers.engine.batching import BatchPlan, solve, total_steps
from drivetrain_workers.engine.deepspeed_internals import parameter_count, replicated_tensors
from drivetrain_workers.engine.engine import Engine, EvalPart, join_group
from drivetrain_workers.engine.training_data import TrainingData
from drivetrain_workers.errors import BadStepError, RewindError
from drivetrain_workers.modeling.model import build_model
from drivetrain_workers.modeling.objective import load_objective
from drivetrain_workers.protocol.messages import RankTask
from drivetrain_workers.protocol.processes import end_with_parent
from drivetrain_workers.rank.agent_link import AgentLink
from drivetrain_workers.rank.failures import explain
from drivetrain_workers.rank.guards import Alarm, LossGuard, should_stop_early
from drivetrain_workers.rank.peak_memory import peak_bytes, resident_bytes
from drivetrain_workers.records import ledger
from drivetrain_workers.records.adjustments import Adjustments, Positions, Skip
from drivetrain_workers.records.predictions import write_predictions
from drivetrain_workers.records.run_folder import RunFolder
from drivetrain_workers.records.step_times import StepTimes
from drivetrain_workers.spec import CheckpointSpec, TrainingSpec


def main(task_json: str) -> None:
    """Entry point in the forked process. Ends it: 0 when training is done or was stopped, 1 on an error."""
    end_with_parent()
    task = RankTask.from_json(task_json)
    _log_to(RunFolder(Path(task.run_folder)).log(task.rank))
    link = AgentLink(task)
    try:
        train(task, link)
    except BaseException as error:
        traceback.print_exc()
        kind, message = explain(task, error)
        link.report("error", kind=kind, message=message, traceback=traceback.format_exc())
        _end(1)
    _end(0)


def train(task: RankTask, link: AgentLink) -> None:
    """Train from the newest valid checkpoint to the end of the run, or until asked to stop."""
    run = _open(task, link)
    with run.data.batches(run.plan, task.rank, task.local_ranks, run.positions.start(run.step)) as batches:
        _loop(run, batches, link)
        link.enter("last save", run.step)
        run.times.enter("save")
        run.writer.wait()
        dist.barrier()  # nobody leaves before the last checkpoint is committed
        run.times.end_turn(run.step, 0.0)
        run.times.close()
    if task.rank == 0:
        complete = run.step == run.steps or run.stopped_early
        link.report("finished", step=run.step, complete=complete, peak_bytes=peak_bytes(), base_bytes=run.base_bytes)


@dataclass
class _Run:
    """All parts of a training run on this rank, and how far it is.

    Attributes:
        times: what its turns are spent on.
        base_bytes: memory of the process before there was a model.
        unsaved: the ledger's records of steps since the newest checkpoint in storage.
    """

    task: RankTask
    plan: BatchPlan
    engine: Engine
    writer: CheckpointWriter
    checkpoint: CheckpointSpec
    training: TrainingSpec
    data: TrainingData
    steps: int
    adjustments: Adjustments
    times: StepTimes
    base_bytes: int
    step: int = 0
    stopped_early: bool = False
    unsaved: list[dict[str, Any]] = field(default_factory=list)

    @property
    def positions(self) -> Positions:
        return Positions(self.plan.global_batch, self.adjustments.skips)

    @property
    def folder(self) -> RunFolder:
        return RunFolder(Path(self.task.run_folder))


def _open(task: RankTask, link: AgentLink) -> _Run:
    """Process group, dataset, model, engine, checkpoint: every part reports when it is there."""
    report = link.report
    folder = RunFolder(Path(task.run_folder))
    job = folder.resolved()
    training, checkpoint = TrainingSpec(**job["training"]), CheckpointSpec(**job["checkpoint"])
    rank, world_size = task.rank, task.generation.world_size
    report("phase", phase="forked")
    base_bytes = resident_bytes()
    link.enter("group", 0)
    device = join_group(rank, task.local_rank, world_size, task.generation.rendezvous)
    report("phase", phase="grouped")
    link.enter("find", 0)
    memory = MemoryCopies(Path(task.memory_folder)) if checkpoint.memory_every else None
    found = agree_on_checkpoint(
        folder,
        RemoteCheckpoints(folder, checkpoint) if checkpoint.location else None,
        memory,
        training.stage,
        lambda problem: report("corrupt_checkpoint", message=problem),
        lambda: link.enter("download", 0),
    )
    dist.barrier()  # the run's records may have been downloaded, too: what follows reads them
    link.enter("initialize", 0)

    data = TrainingData(task.dataset_folder, DataSpec(**job["data"]), job["seed"], folder)
    adjustments = Adjustments.read(folder.adjustments)
    micro_batch = adjustments.micro_batch_size or training.micro_batch_size
    plan = solve(training.global_batch_size, micro_batch, world_size)
    steps = total_steps(training.steps, training.epochs, data.epoch, plan.global_batch)
    model = build_model(job["model"], str(folder.code), data.facts, job["seed"])
    objective = load_objective(job["model"], str(folder.code))
    engine = Engine(model, objective, training, plan, steps, device, job["seed"], data.classes)
    replicated_tensors(engine.deepspeed)  # refuses what could not be checkpointed, before the first step
    _seed_rank(job["seed"], rank)
    report("phase", phase="initialized", parameters=parameter_count(model))

    link.enter("load", 0)

    number, keep = task.generation.number, checkpoint.keep
    writer = CheckpointWriter(folder, rank, world_size, number, keep, report, _began(folder), memory)
    engine.before_update = writer.before_update
    times = StepTimes(None if rank else folder.step_times, number)
    run = _Run(task, plan, engine, writer, checkpoint, training, data, steps, adjustments, times, base_bytes)
    if found:
        _resume(run, found, link)
    report("phase", phase="loaded", step=run.step, steps=steps, unsaved=run.unsaved if rank == 0 else [])
    return run


def _resume(run: _Run, checkpoint: Checkpoint, link: AgentLink) -> None:
    """Load, and prove that what was loaded is what was saved."""
    rank, world_size, deepspeed = run.task.rank, run.plan.world_size, run.engine.deepspeed
    restore(deepspeed, checkpoint, rank, world_size)
    run.step = checkpoint.step
    run.unsaved = checkpoint.indexes[rank].get("records", []) if rank in checkpoint.indexes else []
    prove_state(deepspeed, checkpoint, rank, world_size)
    if run.checkpoint.verify == "step" and (probe := checkpoint.manifest.get("probe")):
        link.enter("prove", run.step)
        with run.data.batches(run.plan, rank, run.task.local_ranks, int(probe["position"])) as batches:
            prove_loss(deepspeed, checkpoint, _probe(run, next(batches)), world_size)


def _probe(run: _Run, batch: Batch) -> float:
    """Loss of a global batch without dropout; changes nothing."""
    rows = run.plan.rows(run.task.rank)
    part = EvalPart(batch.columns, rows.stop - rows.start, run.plan.global_batch, batch.position + rows.start)
    return run.engine.evaluate(part, metrics=False).loss


def _loop(run: _Run, batches: Iterator[Batch], link: AgentLink) -> None:
    records = run.unsaved
    history = [r for r in ledger.read(run.folder.ledger) if r["step"] <= run.step - len(records)] + records
    guard = LossGuard(run.training.guard, [record["loss"] for record in history])
    scores = [record["evaluation"]["score"] for record in history if "evaluation" in record]
    if should_stop_early(run.training.early_stop, scores):
        run.stopped_early = True
        return
    while run.step < run.steps:
        began = time.perf_counter()
        link.enter("data", run.step)
        run.times.enter("data")
        batch = next(b for b in batches if not run.positions.skipped(b.position))
        waited_s = time.perf_counter() - began
        link.enter("step", run.step)
        run.times.enter("compute")
        save_due = run.checkpoint.every == "auto" and run.task.rank == 0 and run.writer.is_due()
        asked = link.stop_asked.is_set(), save_due
        result = run.engine.step(batch.columns, batch.position, *asked, busy=run.writer.is_busy)
        run.step += 1
        step_s = time.perf_counter() - began
        if alarm := guard.check(result.loss, result.gradient_norm):
            _react(run, alarm, batch.position, link)
        record: dict[str, Any] = {
            "step": run.step,
            "positions": [batch.position, batch.position + run.plan.global_batch],
            "world_size": run.plan.world_size,
            "generation": run.task.generation.number,
            "time": time.time(),
            "loss": result.loss,
            "learning_rate": result.learning_rate,
            "gradient_norm": result.gradient_norm,
        }
        records.append(record)
        if run.task.rank == 0:
            timing = {"step_s": step_s, "data_wait_s": waited_s, "tokens": _tokens(batch) * run.plan.global_batch}
            link.report("step", **{**record, **timing})
        last = run.step == run.steps
        if last or run.step % run.training.eval_every == 0:
            link.enter("evaluate", run.step)
            run.times.enter("evaluate")
            record["evaluation"] = _evaluate(run, link)
            scores.append(record["evaluation"]["score"])
            run.stopped_early = not last and should_stop_early(run.training.early_stop, scores)
        last = last or run.stopped_early
        if last or result.stop_asked or result.save_asked or _is_turn(run.step, run.checkpoint.every):
            link.enter("save", run.step)
            run.times.enter("save")
            _save(run, batch, records)
            records = []
        elif run.checkpoint.memory_every and not result.busy and _is_turn(run.step, run.checkpoint.memory_every):
            link.enter("copy", run.step)
            run.times.enter("save")
            run.writer.copy(run.engine.deepspeed, run.step, batch.position + run.plan.global_batch, records)
        run.times.end_turn(run.step, result.communicated_s)
        if result.stop_asked or run.stopped_early:
            return


def _evaluate(run: _Run, link: AgentLink) -> dict[str, Any]:
    """Loss, metrics and predictions on the eval split."""
    part = run.data.evaluation(run.plan, run.task.rank)
    found = run.engine.evaluate(part)
    score = run.training.best.score(found.loss, found.metrics)
    if run.engine.objective.predicts:
        predictions = run.engine.predict(part, run.training.predictions)
        if run.task.rank == 0:
            for path in write_predictions(run.folder.predictions, run.step, predictions):
                link.report("predictions", path=str(path))
    if run.task.rank == 0:
        link.report("eval", step=run.step, loss=found.loss, metrics=found.metrics)
    return {"loss": found.loss, "metrics": found.metrics, "score": score}


def _save(run: _Run, batch: Batch, records: list[dict[str, Any]]) -> None:
    """Save what the step on ``batch`` has led to, with the ledger's records since the save before."""
    probe = {"position": batch.position, "loss": _probe(run, batch)} if run.checkpoint.verify == "step" else None
    position, evaluation = batch.position + run.plan.global_batch, records[-1].get("evaluation")
    run.writer.save(run.engine.deepspeed, run.step, position, records, evaluation, probe)


def _react(run: _Run, alarm: Alarm, position: int, link: AgentLink) -> None:
    """Do what the job says about a bad step; every rank does the same.

    Raises:
        BadStepError, RewindError: this generation ends here.
    """
    spec = run.training.guard
    policy = {"non_finite": spec.non_finite, "spike": spec.spike}[alarm.kind]
    if policy == "warn":
        if run.task.rank == 0:
            link.report("warning", message=f"step {run.step}: {alarm.detail}")
        return
    if policy == "stop" or len(run.adjustments.skips) >= spec.max_rewinds:
        raise BadStepError(run.step, alarm.kind, alarm.detail)
    run.writer.wait()  # of two checkpoints the newer: it was begun before this step
    if run.task.rank == 0:
        skip = Skip(position, position + run.plan.global_batch, run.step, alarm.detail)
        run.adjustments.with_skip(skip).write(run.folder.adjustments)
    dist.barrier()
    raise RewindError(run.step, alarm.detail)


def _is_turn(step: int, every: int | str) -> bool:
    return isinstance(every, int) and step % every == 0


def _began(folder: RunFolder) -> float:
    """When the run made its first step, over all generations; seconds since the epoch."""
    records = ledger.read(folder.ledger)
    return float(records[0]["time"]) if records else time.time()


def _tokens(batch: Batch) -> int:
    """Tokens that one sample trains on; 1 where samples are not token sequences."""
    tokens = batch.columns.get("tokens")
    return tokens.shape[1] - 1 if isinstance(tokens, np.ndarray) else 1


def _seed_rank(seed: int, rank: int) -> None:
    """Each rank draws its own random numbers (dropout); a loaded checkpoint brings its own state."""
    key = mix_key(seed, rank)
    random.seed(key)
    np.random.seed(key % (1 << 32))
    torch.manual_seed(key)


def _log_to(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _end(code: int) -> None:
    """Leave at once: the interpreter's and the process group's farewells can hang on a gang that is half gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
