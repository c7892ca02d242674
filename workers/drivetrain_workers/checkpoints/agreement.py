"""Choice of the state that all ranks of a gang load: the newest valid one, from memory, the run's folder, or storage.

Every byte is read once for verification: each rank reads its own part, in parallel with the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.distributed as dist
from drivetrain_pipelines.errors import CorruptFileError, WrongBytesError

from drivetrain_workers.checkpoints.load import Checkpoint
from drivetrain_workers.checkpoints.memory_copies import MemoryCopies
from drivetrain_workers.checkpoints.remote import RemoteCheckpoints
from drivetrain_workers.checkpoints.store import committed, set_aside, verify
from drivetrain_workers.errors import CheckpointError
from drivetrain_workers.records.run_folder import CheckpointId, RunFolder


def gather_objects(value: Any) -> list[Any]:
    """Return every rank's ``value`` to every rank of the process group."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


@dataclass(frozen=True, order=True)
class _Candidate:
    """A state that could be loaded. The newer is greater; a checkpoint is greater than a copy of the same state.

    Attributes:
        stored: whether it is in the run's folder, not in memory.
    """

    name: CheckpointId
    stored: bool


@dataclass(frozen=True)
class Agreement:
    """One rank's part in choosing a state. All ranks of a gang call `choose` together.

    Attributes:
        folder: folder of the run.
        remote: checkpoints of the run in storage, if the job has a location.
        memory: copies on this node, if the job makes them.
        stage: ZeRO stage of this gang.
        gather: see `gather_objects`.
        report: called on rank 0 with the problem of each state that is skipped.
        progress: called repeatedly while files are downloaded.
    """

    folder: RunFolder
    remote: RemoteCheckpoints | None
    memory: MemoryCopies | None
    stage: int
    rank: int
    world_size: int
    gather: Callable[[Any], list[Any]]
    report: Callable[[str], None]
    progress: Callable[[], None]

    def choose(self) -> Checkpoint | None:
        """Return the newest valid state, the same on every rank; None where there is none yet.

        Raises:
            CheckpointError: storage has checkpoints, none of them is valid, and there is no other state.
            FetchError, OSError: there is no other state, and storage does not answer.
        """
        chosen = next((candidate for candidate in self._candidates() if self._is_sound(candidate)), None)
        if self.remote:
            chosen = self._download_newer(self.remote, chosen) or chosen
        if self.memory:
            self.memory.remove_newer(self.rank, chosen.name if chosen else None)
            if chosen and not chosen.stored:
                path, copy = self.memory.open(chosen.name, self.rank)
                return Checkpoint(path, copy.manifest, {self.rank: copy.index}, copy.records)
        return Checkpoint(chosen.name.folder(self.folder.checkpoints)) if chosen else None

    def _candidates(self) -> list[_Candidate]:
        """Return all checkpoints, and all copies for which every rank has its own file, newest first."""
        copies = self.memory.find(self.rank, self.world_size, self.stage) if self.memory else []
        stored = committed(self.folder.checkpoints) if self.rank == 0 else []
        values = self.gather((copies, stored))
        complete = set.intersection(*(set(copies) for copies, _ in values))
        found = [_Candidate(name, stored=False) for name in complete]
        found += [_Candidate(name, stored=True) for name in values[0][1]]
        return sorted(found, reverse=True)

    def _is_sound(self, candidate: _Candidate) -> bool:
        """Check whether every rank can read its part unchanged. A damaged checkpoint is set aside."""
        problems = self.gather(_problem(partial(self._verify, candidate)))
        if self.rank == 0 and any(problems):
            problem: str = next(filter(None, problems))
            if candidate.stored:
                self._set_aside(candidate.name, problem)
            self.report(problem)
        return not any(problems)

    def _verify(self, candidate: _Candidate) -> None:
        if candidate.stored:
            verify(candidate.name.folder(self.folder.checkpoints), self.rank, self.world_size)
        elif self.memory:
            self.memory.verify(candidate.name, self.rank)

    def _set_aside(self, name: CheckpointId, problem: str) -> None:
        """Set a checkpoint aside. Raises OSError if only another rank sees the damage: nodes see different folders."""
        if not _problem(partial(verify, name.folder(self.folder.checkpoints))):
            raise OSError(f"the files of a valid checkpoint cannot be read on every node: {problem}")
        set_aside(self.folder.checkpoints, name)

    def _download_newer(self, remote: RemoteCheckpoints, own: _Candidate | None) -> _Candidate | None:
        """Download the newest valid checkpoint of storage into the run's folder, if all other state is older."""
        newer = self._newer_in_storage(remote, own) if self.rank == 0 else []
        if newer:
            remote.download_records()
        for name in self.gather(newer)[0]:
            part = partial(remote.download, name, self.rank, self.world_size, self.progress)
            problem: str = next(filter(None, self.gather(_problem(part))), "")
            if self.rank == 0:
                problem = problem or _problem(partial(remote.finish_download, name))
                if problem:
                    self.report(problem)
                    remote.set_aside(name)
            if not self.gather(problem)[0]:
                return _Candidate(name, stored=True)
        if self.rank == 0 and own is None and (useless := remote.already_set_aside()):
            raise CheckpointError(
                f"no checkpoint in {remote.location} can be loaded: {len(useless)} are damaged, and there is no other "
                "state. Restore them, or run the job again"
            )
        return None

    def _newer_in_storage(self, remote: RemoteCheckpoints, own: _Candidate | None) -> list[CheckpointId]:
        """Return the checkpoints in storage that are newer than all other state, newest first."""
        try:
            there = remote.committed()
        except OSError as error:
            if own is None:
                raise OSError(f"cannot list the checkpoints of this run in storage: {error}") from error
            self.report(f"storage was not checked for newer checkpoints: {error}"[:300])
            return []
        return [name for name in there if own is None or name > own.name]


def _problem(work: Callable[[], None]) -> str:
    """Return the problem that ``work`` finds with a state; empty if none. Errors of unavailable storage are raised."""
    try:
        work()
    except (CorruptFileError, WrongBytesError) as error:
        return str(error)
    return ""
