"""All ranks of a gang load the same checkpoint: the newest that is sound, from the run's folder or from storage."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from drivetrain_pipelines.errors import CorruptFileError, FetchError

from drivetrain_workers.checkpoints.load import Checkpoint
from drivetrain_workers.checkpoints.memory import MemoryCopies
from drivetrain_workers.checkpoints.remote import RemoteCheckpoints
from drivetrain_workers.checkpoints.store import CheckpointId, newest_valid, set_aside_corrupt
from drivetrain_workers.run_folder import RunFolder


def agree_on_checkpoint(
    folder: RunFolder,
    remote: RemoteCheckpoints | None,
    memory: MemoryCopies | None,
    stage: int,
    report: Callable[[str], None],
    progress: Callable[[], None],
) -> Checkpoint | None:
    """Rank 0 verifies every byte and chooses; the others follow. None where there is no checkpoint yet.

    Args:
        stage: ZeRO's, of this gang.
        report: told, on rank 0, what is wrong with those that were passed over.
        progress: called now and then while files are downloaded.

    Raises:
        OSError: there is none in the folder, and storage does not answer whether it has one.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    newer: list[CheckpointId] = []
    if rank == 0:
        for problem in set_aside_corrupt(folder.checkpoints):
            report(problem)
        newer = _newer_in_storage(folder, remote, report) if remote else []
    candidates = _from_rank_0([(c.step, c.generation) for c in newer])
    for checkpoint in itertools.starmap(CheckpointId, candidates):
        assert remote
        problems = [""] * world_size
        dist.all_gather_object(problems, _attempt(partial(remote.download, checkpoint, rank, world_size, progress)))
        if rank == 0 and not any(problems):
            problems[0] = _attempt(partial(remote.finish_download, checkpoint))
        problems = _from_rank_0(problems)
        if not any(problems):
            break
        if rank == 0:
            report(next(filter(None, problems)))
            remote.give_up_download(checkpoint)
        dist.barrier()
    found, _ = newest_valid(folder.checkpoints) if rank == 0 else (None, [])
    chosen = _from_rank_0(str(found or ""))
    stored = Path(chosen) if chosen else None
    if memory:
        everywhere: list[set[tuple[int, int]]] = [set()] * world_size
        dist.all_gather_object(everywhere, {(c.step, c.generation) for c in memory.find(rank, world_size, stage)})
        stored_at = CheckpointId.parse(stored.name) if stored else None
        newest = max(set.intersection(*everywhere), default=None)
        if newest and (stored_at is None or newest > (stored_at.step, stored_at.generation)):
            copy, indexes = memory.indexes(CheckpointId(*newest))
            return Checkpoint(copy, indexes[rank]["facts"], indexes)
    return Checkpoint(stored) if stored else None


def _newer_in_storage(
    folder: RunFolder, remote: RemoteCheckpoints, report: Callable[[str], None]
) -> list[CheckpointId]:
    """Checkpoints in storage that are newer than the newest of the run's folder, newest first."""
    found, _ = newest_valid(folder.checkpoints)
    own = CheckpointId.parse(found.name) if found else None
    try:
        there = remote.committed()
    except Exception as error:  # whatever a storage client raises
        if own is None:
            raise OSError(f"storage does not say whether it has a checkpoint of this run: {error!r}") from error
        report(f"storage was not asked for newer checkpoints: {error!r:.200}")
        return []
    return [c for c in there if own is None or (c.step, c.generation) > (own.step, own.generation)]


def _attempt(work: Callable[[], None]) -> str:
    """What was wrong; nothing if it is empty."""
    try:
        work()
    except (CorruptFileError, FetchError) as error:
        return str(error)
    return ""


def _from_rank_0(value: Any) -> Any:
    """Rank 0's ``value`` (of Python's own types) on every rank."""
    choice = [value]
    dist.broadcast_object_list(choice)
    return choice[0]
