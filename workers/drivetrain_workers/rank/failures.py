"""Classification of a rank's errors, with advice for users."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from drivetrain_pipelines.errors import (
    CorruptFileError,
    DrivetrainError,
    FetchError,
    InputError,
    TransformError,
    TransformersLostError,
    UserCodeError,
)
from drivetrain_pipelines.storage.access import access_problem
from drivetrain_pipelines.user_code import describe, raised_by_us, user_code_error

from drivetrain_workers.engine.backend import is_collective_error
from drivetrain_workers.engine.batching import solve
from drivetrain_workers.errors import BadStepError, CheckpointError, ResumeMismatchError, RewindError
from drivetrain_workers.protocol.messages import RankTask
from drivetrain_workers.protocol.reasons import Reason
from drivetrain_workers.records.adjustments import Adjustments
from drivetrain_workers.records.run_folder import RunFolder

# The first match counts. An exception that came out of the job's code is a `UserCodeError` here, whatever its type was.
_BY_TYPE: tuple[tuple[type[BaseException], Reason], ...] = (
    (UserCodeError, Reason.USER_CODE),
    (TransformError, Reason.USER_CODE),
    (InputError, Reason.INPUT),
    (BadStepError, Reason.BAD_STEP),
    (RewindError, Reason.REWOUND),
    (ResumeMismatchError, Reason.RESUME_MISMATCH),
    (FetchError, Reason.STORAGE),
    (TransformersLostError, Reason.STORAGE),
    (CorruptFileError, Reason.STORAGE),
    (CheckpointError, Reason.STORAGE),
    (OSError, Reason.STORAGE),
)
_MISMATCH = "collective mismatch in your code"  # gloo's, when ranks call different collectives
_SAME_PARAMETERS = (
    "all ranks must make the same number of forward passes and, with training.zero_stage 2 or 3, have gradients for "
    "the same parameters in a step"
)
_NO_MEMORY = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
_MAX_SHOWN = 1000  # characters of a message


def classify(error: BaseException) -> Reason:
    """Return the reason that an error belongs to: by whose code raised it, then by its type.

    Memory and peers are lost in the middle of the job's code, too, and remain what they are.
    """
    cause = error.__cause__ if isinstance(error, UserCodeError) and error.__cause__ else error
    if isinstance(cause, torch.OutOfMemoryError | MemoryError):
        return Reason.OUT_OF_MEMORY
    if isinstance(cause, dist.DistError):
        return Reason.COLLECTIVE
    if isinstance(cause, RuntimeError) and (found := _of_torch(str(cause))):
        return found
    if found := next((reason for kind, reason in _BY_TYPE if isinstance(error, kind)), None):
        return found
    # A library that we have called runs the job's graph with the job's settings: backward pass, optimizer.
    return Reason.INTERNAL if raised_by_us(error) else Reason.USER_CODE


def _of_torch(message: str) -> Reason | None:
    """Return the reason for a RuntimeError, which torch raises for many errors."""
    if any(mark in message for mark in _NO_MEMORY):
        return Reason.OUT_OF_MEMORY
    if _MISMATCH in message:
        return Reason.USER_CODE
    return Reason.COLLECTIVE if is_collective_error(message) else None


def explain(task: RankTask, error: BaseException) -> tuple[Reason, str]:
    """Return the reason why a rank ends, and a one-line message. May reduce the micro-batch size if out of memory."""
    code = str(RunFolder(Path(task.run_folder)).code)
    error = user_code_error(error, code) or access_problem("object storage", error) or error
    reason = classify(error)
    message = " ".join(str(error).split())[:_MAX_SHOWN] if isinstance(error, DrivetrainError) else describe(error)
    if _MISMATCH in message:
        message = f"the ranks do not communicate in the same order: {_SAME_PARAMETERS} ({message})"
    if reason is Reason.OUT_OF_MEMORY:
        try:
            return _out_of_memory(task, message)
        except (OSError, DrivetrainError) as second:
            return reason, f"{message}; the settings of the job cannot be read or changed: {describe(second)}"
    return reason, message


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
