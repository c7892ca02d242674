"""Classification of a rank's errors, with advice for users."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from drivetrain_pipelines.errors import CorruptFileError, FetchError, InputError, TransformersLostError

from drivetrain_workers.engine.backend import is_collective_error
from drivetrain_workers.engine.batching import solve
from drivetrain_workers.errors import BadStepError, CheckpointError, ResumeMismatchError, RewindError
from drivetrain_workers.protocol.messages import RankTask
from drivetrain_workers.protocol.reasons import Reason
from drivetrain_workers.records.adjustments import Adjustments
from drivetrain_workers.records.run_folder import RunFolder

# The first match counts.
_BY_TYPE: tuple[tuple[type[BaseException], Reason], ...] = (
    (InputError, Reason.INPUT),
    (BadStepError, Reason.BAD_STEP),
    (RewindError, Reason.REWOUND),
    (ResumeMismatchError, Reason.RESUME_MISMATCH),
    (torch.OutOfMemoryError, Reason.OUT_OF_MEMORY),
    (MemoryError, Reason.OUT_OF_MEMORY),
    (dist.DistError, Reason.COLLECTIVE),
    (FetchError, Reason.STORAGE),
    (TransformersLostError, Reason.STORAGE),
    (CorruptFileError, Reason.STORAGE),
    (CheckpointError, Reason.STORAGE),
    (OSError, Reason.STORAGE),
)
_NO_MEMORY = "can't allocate memory"
_MISMATCH = "collective mismatch in your code"  # gloo's, when ranks call different collectives
_SAME_PARAMETERS = (
    "all ranks must make the same number of forward passes and, with training.zero_stage 2 or 3, have gradients for "
    "the same parameters in a step"
)


def classify(error: BaseException) -> Reason:
    """Return the reason that an error belongs to."""
    if isinstance(error, RuntimeError):  # torch raises it for many errors
        if _NO_MEMORY in str(error):
            return Reason.OUT_OF_MEMORY
        if _MISMATCH in str(error):
            return Reason.USER_CODE
        if is_collective_error(str(error)):
            return Reason.COLLECTIVE
    return next((reason for kind, reason in _BY_TYPE if isinstance(error, kind)), Reason.USER_CODE)


def explain(task: RankTask, error: BaseException) -> tuple[Reason, str]:
    """Return the reason why a rank ends, and a one-line message. May reduce the micro-batch size if out of memory."""
    lines = str(error).strip().splitlines()
    reason, message = classify(error), f"{type(error).__name__}: {lines[0] if lines else ''}"[:500]
    if _MISMATCH in str(error):
        message = f"the ranks do not communicate in the same order: {_SAME_PARAMETERS} ({message})"
    return _out_of_memory(task, message) if reason is Reason.OUT_OF_MEMORY else (reason, message)


def _out_of_memory(task: RankTask, message: str) -> tuple[Reason, str]:
    folder = RunFolder(Path(task.run_folder))
    training = folder.train_job().training
    adjustments = Adjustments.read(folder.adjustments)
    if adjustments.decided_by == task.generation.number:  # another rank has decided already
        return Reason.SMALLER_BATCHES, f"{message}; continuing with micro_batch_size {adjustments.micro_batch_size}"
    micro_batch = adjustments.micro_batch_size or training.micro_batch_size
    tried = solve(training.global_batch_size, micro_batch, task.generation.world_size).micro_batch
    if tried == 1:
        return (
            Reason.OUT_OF_MEMORY,
            f"{message}; micro_batch_size is 1 already: raise training.zero_stage, or use more workers",
        )
    if training.on_oom == "retry-smaller":
        decided = replace(adjustments, micro_batch_size=tried // 2, decided_by=task.generation.number)
        decided.write(folder.adjustments)
        return Reason.SMALLER_BATCHES, f"{message}; continuing with micro_batch_size {tried // 2} instead of {tried}"
    fix = f"try --set training.micro_batch_size={tried // 2} (it was {tried}; the global batch stays the same)"
    return Reason.OUT_OF_MEMORY, f"{message}; {fix}, or --set training.on_oom=retry-smaller"
