"""Preparation of a rank for its first step: process group, data, model, engine, and the newest state."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from drivetrain_pipelines.order.permutation import mix_key
from drivetrain_pipelines.stream.reader import Batch

from drivetrain_workers.checkpoints.agreement import Agreement, gather_objects
from drivetrain_workers.checkpoints.load import Checkpoint, restore
from drivetrain_workers.checkpoints.manifest import History
from drivetrain_workers.checkpoints.memory_copies import MemoryCopies
from drivetrain_workers.checkpoints.proof import verify_loss, verify_state
from drivetrain_workers.checkpoints.remote import RemoteCheckpoints
from drivetrain_workers.checkpoints.save import CheckpointWriter
from drivetrain_workers.engine.batching import BatchPlan, solve, total_steps
from drivetrain_workers.engine.deepspeed_internals import parameter_count, replicated_tensors
from drivetrain_workers.engine.engine import Engine, join_group
from drivetrain_workers.engine.training_data import EvalPart, TrainingData
from drivetrain_workers.modeling.model import build_model
from drivetrain_workers.modeling.objective import load_objective
from drivetrain_workers.protocol.events import PhaseReached, ProblemFound, RankInitialized, RankLoaded
from drivetrain_workers.protocol.messages import RankTask
from drivetrain_workers.protocol.step_record import StepRecord
from drivetrain_workers.rank.agent_link import AgentLink
from drivetrain_workers.rank.guards import EarlyStop, LossGuard
from drivetrain_workers.rank.peak_memory import resident_bytes
from drivetrain_workers.records.adjustments import Adjustments, Positions
from drivetrain_workers.records.run_folder import RunFolder
from drivetrain_workers.records.step_times import StepTimes
from drivetrain_workers.spec import CheckpointSpec, TrainingSpec


@dataclass
class RankRun:
    """All parts of a training run on this rank, and its progress.

    Attributes:
        steps: optimizer steps of the whole run.
        began: end of the run's first step, in seconds since the epoch; for a new run, the current time.
        times: times of the iterations of the loop.
        base_bytes: memory of the process before the model was created.
        step: optimizer steps done.
        unsaved: records of the steps since the newest checkpoint.
        barrier: waits for all ranks.
    """

    task: RankTask
    link: AgentLink
    plan: BatchPlan
    engine: Engine
    writer: CheckpointWriter
    checkpoint: CheckpointSpec
    training: TrainingSpec
    data: TrainingData
    adjustments: Adjustments
    times: StepTimes
    guard: LossGuard
    early_stop: EarlyStop
    steps: int
    began: float
    base_bytes: int
    step: int = 0
    unsaved: list[StepRecord] = field(default_factory=list)
    barrier: Callable[[], object] = dist.barrier

    @property
    def complete(self) -> bool:
        """Whether all steps are done."""
        return self.step == self.steps or self.early_stop.is_due

    @property
    def positions(self) -> Positions:
        """Positions in the stream that each step trains on."""
        return Positions(self.plan.global_batch, self.adjustments.skips)

    @property
    def folder(self) -> RunFolder:
        """Folder of the run."""
        return RunFolder(Path(self.task.run_folder))

    @property
    def history(self) -> History:
        """State for the next generation about the steps so far."""
        return History(self.began, self.guard.losses, self.early_stop.best, self.early_stop.since_best)


def open_run(task: RankTask, link: AgentLink) -> RankRun:
    """Join the gang, build everything and load the newest state; each part is reported when it is ready."""
    folder = RunFolder(Path(task.run_folder))
    job = folder.train_job()
    training, checkpoint = job.training, job.checkpoint
    rank, world_size = task.rank, task.generation.world_size
    link.report(PhaseReached(task.id, "forked"))
    base_bytes = resident_bytes()
    link.enter("group", 0)
    device = join_group(rank, task.local_rank, world_size, task.generation.rendezvous)
    link.report(PhaseReached(task.id, "grouped"))
    link.enter("find", 0)
    memory = MemoryCopies(Path(task.memory_folder)) if checkpoint.memory_every else None
    found = _find(task, link, training.stage, checkpoint, memory)
    dist.barrier()  # the run's records may have been downloaded; the following code reads them
    link.enter("initialize", 0)
    data = TrainingData(task.dataset_folder, job.data, job.seed, folder)
    adjustments = Adjustments.read(folder.adjustments)
    plan = solve(training.global_batch_size, adjustments.micro_batch_size or training.micro_batch_size, world_size)
    steps = total_steps(training.steps, training.epochs, data.epoch, plan.global_batch)
    model = build_model(job.model, str(folder.code), data.facts, job.seed)
    objective = load_objective(job.model, str(folder.code))
    engine = Engine(model, objective, training, plan, steps, device, job.seed, data.classes)
    replicated_tensors(engine.deepspeed)  # raises for models that cannot be checkpointed, before the first step
    _seed_rank(job.seed, rank)
    link.report(RankInitialized(task.id, parameter_count(model)))
    link.enter("load", 0)
    history = (found and found.manifest.history) or History(time.time())
    writer = CheckpointWriter(folder, task.id, world_size, checkpoint.keep, link.report, history.began, memory)
    engine.before_update = writer.before_update
    run = RankRun(
        task=task,
        link=link,
        plan=plan,
        engine=engine,
        writer=writer,
        checkpoint=checkpoint,
        training=training,
        data=data,
        adjustments=adjustments,
        times=StepTimes(None if rank else folder.step_times, task.generation.number),
        guard=LossGuard(training.guard, history.losses),
        early_stop=EarlyStop(training.early_stop, history.best, history.since_best),
        steps=steps,
        began=history.began,
        base_bytes=base_bytes,
    )
    if found:
        _resume(run, found)
    link.report(RankLoaded(task.id, run.step, steps, tuple(run.unsaved) if rank == 0 else ()))
    return run


def probe_loss(run: RankRun, batch: Batch) -> float:
    """Return the loss of a global batch without dropout; has no side effects."""
    rows = run.plan.rows(run.task.rank)
    part = EvalPart(batch.columns, rows.stop - rows.start, run.plan.global_batch, batch.position + rows.start)
    return run.engine.evaluate(part, metrics=False).loss


def _find(
    task: RankTask, link: AgentLink, stage: int, checkpoint: CheckpointSpec, memory: MemoryCopies | None
) -> Checkpoint | None:
    folder = RunFolder(Path(task.run_folder))
    agreement = Agreement(
        folder,
        RemoteCheckpoints(folder, checkpoint) if checkpoint.location else None,
        memory,
        stage,
        task.rank,
        task.generation.world_size,
        gather_objects,
        lambda problem: link.report(ProblemFound(problem)),
        lambda: link.enter("download", 0),
    )
    return agreement.choose()


def _resume(run: RankRun, checkpoint: Checkpoint) -> None:
    """Load a checkpoint, and verify that the loaded state is the saved one."""
    rank, world_size, deepspeed = run.task.rank, run.plan.world_size, run.engine.deepspeed
    restore(deepspeed, checkpoint, rank, world_size)
    run.step, run.unsaved = checkpoint.step, list(checkpoint.unsaved)
    verify_state(deepspeed, checkpoint, rank, world_size)
    if run.checkpoint.verify == "step" and (probe := checkpoint.manifest.probe):
        run.link.enter("prove", run.step)
        with run.data.batches(run.plan, rank, run.task.local_ranks, probe.position) as batches:
            verify_loss(deepspeed, checkpoint, probe, probe_loss(run, next(batches)), world_size)


def _seed_rank(seed: int, rank: int) -> None:
    """Seed the rank's own random numbers (dropout); a loaded checkpoint restores its own state."""
    key = mix_key(seed, rank)
    random.seed(key)
    np.random.seed(key % (1 << 32))
    torch.manual_seed(key)
