"""Copies of the ranks' states in their node's memory. A restart loads them when they are newer than checkpoints.

The files are those of a checkpoint, in the node's shared memory, but without a manifest: a copy is complete when every
rank of a generation finds its own file. The two newest copies of each rank are kept, because the previous one must be
complete while the next one is written. They only fit the same world size and ZeRO stage; others load a checkpoint.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from drivetrain_pipelines.errors import CorruptFileError
from drivetrain_pipelines.storage.json_files import JsonObject, atomic_write, read_json, write_json

from drivetrain_workers.checkpoints.manifest import Manifest, RankIndex
from drivetrain_workers.checkpoints.store import rank_file, rank_index, verify_rank
from drivetrain_workers.protocol.step_record import StepRecord
from drivetrain_workers.records.run_folder import CheckpointId

_MAX_COPIES = 2
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # only this user's folders in it are used
_OWNER = "owner.lock"
_ORPHAN_AGE_S = 600.0  # a dead agent is replaced sooner


def memory_folder(run_id: str, first_rank: int) -> Path:
    """Return the folder of a node's copies; ``first_rank`` is the first rank of its agent."""
    return _SHARED_MEMORY / f"drivetrain-{os.getuid()}" / f"{run_id}-{first_rank}"


def acquire_memory_folder(folder: Path) -> int:
    """Create a node's folder and own it while the returned file descriptor is open. Raises OSError."""
    with _locked(folder.parent, make=True):
        folder.mkdir(exist_ok=True)
        descriptor = os.open(folder / _OWNER, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def remove_orphans(folder: Path, now: float) -> None:
    """Release the memory of runs whose owners were killed some time ago; ``folder`` is not removed.

    A folder that was written to in the last minutes may be waiting for the replacement of a dead agent.

    Args:
        now: seconds since the epoch.

    Raises:
        OSError: the folder is not private.
    """
    if folder.parent.is_symlink() or folder.parent.exists():
        with _locked(folder.parent, make=False):
            for other in folder.parent.iterdir():
                if other != folder and not _is_owned(other) and now - _last_written(other) > _ORPHAN_AGE_S:
                    shutil.rmtree(other, ignore_errors=True)


def remove_memory_folder(folder: Path) -> None:
    """Release the memory of a run that has ended."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # other runs have folders in it, or it does not exist
        folder.parent.rmdir()


@contextmanager
def _locked(parent: Path, make: bool) -> Iterator[None]:
    """Lock ``parent`` against other owners and removers. It must be owned by this user, because /dev/shm is public."""
    if make:
        with suppress(FileExistsError):
            parent.mkdir(mode=0o700)
    descriptor = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        facts = os.fstat(descriptor)
        if facts.st_uid != os.getuid() or stat.S_IMODE(facts.st_mode) != 0o700:
            raise PermissionError(f"{parent} is not a private folder of this user; remove it")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class RankCopy:
    """The index of a copy.

    Attributes:
        records: records of the steps since the newest checkpoint, which the ledger does not have.
    """

    manifest: Manifest
    index: RankIndex
    records: tuple[StepRecord, ...] = ()

    def to_json(self) -> JsonObject:
        """Return the JSON form."""
        records = [record.to_json() for record in self.records]
        return {**self.index.to_json(), "facts": self.manifest.to_json(), "records": records}

    @classmethod
    def from_json(cls, copy: JsonObject) -> Self:
        """Decode the result of `to_json`."""
        records = tuple(StepRecord.from_json(record) for record in copy["records"])
        return cls(Manifest.from_json(copy["facts"]), RankIndex.from_json(copy), records)


class MemoryCopies:
    """The copies on one node.

    Args:
        folder: see `memory_folder`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, checkpoint: CheckpointId, rank: int, copy: RankCopy, content: memoryview) -> None:
        """Store a rank's state. Raises OSError when memory is short."""
        folder = checkpoint.folder(self._folder)
        self.prepare_write(checkpoint, rank)
        with atomic_write(folder / rank_file(rank)) as file:
            file.write(content)
        write_json(folder / rank_index(rank), copy.to_json())

    def find(self, rank: int, world_size: int, stage: int) -> list[CheckpointId]:
        """Return the copies that fit a rank of this world size and ZeRO stage, newest first; `verify` before use."""
        return [c for c in self.completed(rank) if self._matches_layout(c, rank, world_size, stage)]

    def open(self, checkpoint: CheckpointId, rank: int) -> tuple[Path, RankCopy]:
        """Return folder and index of a rank's copy. Raises CorruptFileError."""
        return checkpoint.folder(self._folder), RankCopy.from_json(read_json(self.paths(checkpoint, rank)[1]))

    def verify(self, checkpoint: CheckpointId, rank: int) -> None:
        """Check every byte of a rank's copy. Raises CorruptFileError."""
        verify_rank(checkpoint.folder(self._folder), rank)

    def paths(self, checkpoint: CheckpointId, rank: int) -> tuple[Path, Path]:
        """Return the paths of state and index of one rank."""
        folder = checkpoint.folder(self._folder)
        return folder / rank_file(rank), folder / rank_index(rank)

    def completed(self, rank: int) -> list[CheckpointId]:
        """Return the completely written copies of a rank, newest first."""
        found = [CheckpointId.parse(path.parent.name) for path in self._folder.glob(f"*/{rank_index(rank)}")]
        return sorted((c for c in found if c), reverse=True)

    def prepare_write(self, coming: CheckpointId, rank: int) -> None:
        """Create the folder for a new copy of a rank, and remove all its older copies but the newest."""
        coming.folder(self._folder).mkdir(parents=True, exist_ok=True)
        completed = self.completed(rank)
        self._remove(rank, set(completed[: _MAX_COPIES - 1]) | {coming})

    def remove_newer(self, rank: int, chosen: CheckpointId | None) -> None:
        """Remove the copies of a rank that are newer than ``chosen`` or incomplete, after a resume from ``chosen``."""
        self._remove(rank, {c for c in self.completed(rank) if chosen and c <= chosen})

    def _remove(self, rank: int, kept: set[CheckpointId]) -> None:
        for path in self._folder.glob(f"step-*/{Path(rank_file(rank)).stem}.*"):  # partial and temporary files, too
            if CheckpointId.parse(path.parent.name) not in kept:
                path.unlink(missing_ok=True)
                with suppress(OSError):  # not empty: other ranks have files in it
                    path.parent.rmdir()

    def _matches_layout(self, checkpoint: CheckpointId, rank: int, world_size: int, stage: int) -> bool:
        try:
            _, copy = self.open(checkpoint, rank)
        except CorruptFileError:
            return False
        return (copy.manifest.world_size, copy.manifest.zero_stage) == (world_size, stage)


def _last_written(folder: Path) -> float:
    return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))


def _is_owned(folder: Path) -> bool:
    try:
        descriptor = os.open(folder / _OWNER, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)
