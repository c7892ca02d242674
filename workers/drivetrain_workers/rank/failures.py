"""What a rank's last error was, in the words of the coordinator, and what a user can do about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from drivetrain_pipelines.errors import CorruptFileError, FetchError, InputError, TransformersLostError

from drivetrain_workers.engine.batching import solve
from drivetrain_workers.errors import BadStepError, CheckpointError, ResumeMismatchError, RewindError
from drivetrain_workers.protocol.messages import RankTask
from drivetrain_workers.records.adjustments import Adjustments
from drivetrain_workers.records.run_folder import RunFolder
from drivetrain_workers.spec import TrainingSpec

# The kinds are `drivetrain.runs.outcomes.Reason`s; the first that fits counts.
_BY_TYPE: tuple[tuple[type[BaseException], str], ...] = (
    (InputError, "input"),
    (BadStepError, "bad_step"),
    (RewindError, "rewound"),
    (ResumeMismatchError, "resume_mismatch"),
    (torch.OutOfMemoryError, "out_of_memory"),
    (MemoryError, "out_of_memory"),
    (dist.DistError, "collective"),
    (FetchError, "storage"),
    (TransformersLostError, "storage"),
    (CorruptFileError, "storage"),
    (CheckpointError, "storage"),
    (OSError, "storage"),
)
_BY_WORDS = (("can't allocate memory", "out_of_memory"), ("gloo", "collective"), ("NCCL", "collective"))


def classify(error: BaseException) -> str:
    """The kind of an error."""
    by_words = _BY_WORDS if isinstance(error, RuntimeError) else ()  # which is what torch raises
    kinds = [kind for words, kind in by_words if words in str(error)]
    kinds += [kind for type_, kind in _BY_TYPE if isinstance(error, type_)]
    return kinds[0] if kinds else "user_code"


def explain(task: RankTask, error: BaseException) -> tuple[str, str]:
    """Kind and one line on what ended a rank. Out of memory may be answered by smaller micro-batches from now on."""
    lines = str(error).strip().splitlines()
    kind, message = classify(error), f"{type(error).__name__}: {lines[0] if lines else ''}"[:500]
    return _out_of_memory(task, message) if kind == "out_of_memory" else (kind, message)


def _out_of_memory(task: RankTask, message: str) -> tuple[str, str]:
    folder = RunFolder(Path(task.run_folder))
    training = TrainingSpec(**folder.resolved()["training"])
    adjustments = Adjustments.read(folder.adjustments)
    if adjustments.decided_by == task.generation.number:  # by another rank, to which the same has happened
        return "smaller_batches", f"{message}; going on with micro_batch_size {adjustments.micro_batch_size}"
    micro_batch = adjustments.micro_batch_size or training.micro_batch_size
    tried = solve(training.global_batch_size, micro_batch, task.generation.world_size).micro_batch
    if tried == 1:
        return "out_of_memory", f"{message}; micro_batch_size is 1 already: raise training.zero, or use more workers"
    if training.on_oom == "retry-smaller":
        decided = replace(adjustments, micro_batch_size=tried // 2, decided_by=task.generation.number)
        decided.write(folder.adjustments)
        return "smaller_batches", f"{message}; going on with micro_batch_size {tried // 2} instead of {tried}"
    fix = f"try --set training.micro_batch_size={tried // 2} (it was {tried}; the global batch stays the same)"
    return "out_of_memory", f"{message}; {fix}, or --set training.on_oom=retry-smaller"
