"""All ranks of a gang load the same state: the newest that is sound, from memory, the run's folder, or storage."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from drivetrain_pipelines.errors import CorruptFileError, WrongBytesError

from drivetrain_workers.checkpoints.load import Checkpoint
from drivetrain_workers.checkpoints.memory_copies import MemoryCopies
from drivetrain_workers.checkpoints.remote import RemoteCheckpoints
from drivetrain_workers.checkpoints.store import newest_valid, set_aside_corrupt
from drivetrain_workers.errors import CheckpointError
from drivetrain_workers.records.run_folder import CheckpointId, RunFolder


def agree_on_checkpoint(
    folder: RunFolder,
    remote: RemoteCheckpoints | None,
    memory: MemoryCopies | None,
    stage: int,
    report: Callable[[str], None],
    progress: Callable[[], None],
) -> Checkpoint | None:
    """Rank 0 verifies every byte and chooses; the others follow. None where there is no state yet.

    Args:
        stage: ZeRO's, of this gang.
        report: told, on rank 0, what is wrong with those that were passed over.
        progress: called now and then while files are downloaded.

    Raises:
        CheckpointError: storage has checkpoints, none of them is sound, and there is no other state.
        FetchError, OSError: there is no other state, and storage does not answer.
    """
    rank = dist.get_rank()
    copy = _newest_copy(memory, rank, stage) if memory else None
    if rank == 0:
        for problem in set_aside_corrupt(folder.checkpoints):
            report(problem)
    if remote:
        _download_newer(folder, remote, copy, report, progress)
    found, _ = newest_valid(folder.checkpoints) if rank == 0 else (None, [])
    chosen = _from_rank_0(str(found or ""))
    stored = CheckpointId.parse(Path(chosen).name) if chosen else None
    if memory:
        use_copy = copy is not None and (stored is None or copy > stored)
        memory.forget_newer(rank, copy if use_copy else stored)
        if copy and use_copy:
            path, index = memory.open(copy, rank)
            return Checkpoint(path, index["facts"], {rank: index})
    return Checkpoint(Path(chosen)) if chosen else None


def _newest_copy(memory: MemoryCopies, rank: int, stage: int) -> CheckpointId | None:
    """The newest copy of which every rank finds its own file."""
    world_size = dist.get_world_size()
    everywhere: list[set[tuple[int, int]]] = [set()] * world_size
    dist.all_gather_object(everywhere, {(c.step, c.generation) for c in memory.find(rank, world_size, stage)})
    newest = max(set.intersection(*everywhere), default=None)
    return CheckpointId(*newest) if newest else None


def _download_newer(
    folder: RunFolder,
    remote: RemoteCheckpoints,
    copy: CheckpointId | None,
    report: Callable[[str], None],
    progress: Callable[[], None],
) -> None:
    """Bring the newest sound checkpoint of storage into the run's folder, if all other state is older."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    found, _ = newest_valid(folder.checkpoints) if rank == 0 else (None, [])
    stored = CheckpointId.parse(found.name) if found else None
    own = max((c for c in (copy, stored) if c), default=None)
    newer = _newer_in_storage(remote, own, report) if rank == 0 else []
    if newer:
        remote.download_records()
    for checkpoint in itertools.starmap(CheckpointId, _from_rank_0([(c.step, c.generation) for c in newer])):
        problems = [""] * world_size
        dist.all_gather_object(problems, _attempt(partial(remote.download, checkpoint, rank, world_size, progress)))
        if rank == 0 and not any(problems):
            problems[0] = _attempt(partial(remote.finish_download, checkpoint))
        problem: str = next(filter(None, _from_rank_0(problems)), "")
        if not problem:
            return
        if rank == 0:
            report(problem)
            remote.set_aside(checkpoint)
        dist.barrier()
    if rank == 0 and own is None and (useless := remote.set_aside_before()):
        raise CheckpointError(
            f"no checkpoint in {remote.location} can be loaded: {len(useless)} are damaged, and there is no other "
            "state. Restore them, or run the job anew"
        )


def _newer_in_storage(
    remote: RemoteCheckpoints, own: CheckpointId | None, report: Callable[[str], None]
) -> list[CheckpointId]:
    """Checkpoints in storage that are newer than all other state, newest first."""
    try:
        there = remote.committed()
    except OSError as error:
        if own is None:
            raise OSError(f"storage does not say whether it has a checkpoint of this run: {error}") from error
        report(f"storage was not asked for newer checkpoints: {error}"[:300])
        return []
    return [checkpoint for checkpoint in there if own is None or checkpoint > own]


def _attempt(work: Callable[[], None]) -> str:
    """What is wrong with a checkpoint; nothing if it is empty. That storage does not answer is another matter."""
    try:
        work()
    except (CorruptFileError, WrongBytesError) as error:
        return str(error)
    return ""


def _from_rank_0(value: Any) -> Any:
    """Rank 0's ``value`` (of Python's own types) on every rank."""
    choice = [value]
    dist.broadcast_object_list(choice)
    return choice[0]
