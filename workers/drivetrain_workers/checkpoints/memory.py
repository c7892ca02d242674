"""Copies of the ranks' states in their node's memory: what a restart loads when it is newer than what storage has.

Files as those of a checkpoint, in the node's shared memory, but without a manifest: a copy is complete when every rank
of a generation finds its own file. Of each rank the two newest stay, for while one is written, the one before is whole.
They serve the same world size and ZeRO stage only; all other restarts load from storage.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from drivetrain_pipelines.checksums import atomic_write, read_json, verify_file, write_json
from drivetrain_pipelines.errors import CorruptFileError

from drivetrain_workers.checkpoints.store import CheckpointId, rank_file, rank_index

_KEPT = 2
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # folders in it are ours alone
_OWNER = "owner.lock"


def memory_folder(run_id: str, first_rank: int) -> Path:
    """Where the copies of a node lie; ``first_rank`` is that of its agent."""
    return _SHARED_MEMORY / f"drivetrain-{os.getuid()}" / f"{run_id}-{first_rank}"


def own_memory_folder(folder: Path) -> int:
    """Make a node's folder; it is owned for as long as the returned file descriptor is open."""
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    if folder.parent.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder.parent} belongs to somebody else")
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder / _OWNER, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def remove_orphans(folder: Path) -> None:
    """Give back the memory of runs whose owners were killed; ``folder`` is one that stays."""
    for other in folder.parent.glob("*"):
        if other != folder and not _is_owned(other):
            shutil.rmtree(other, ignore_errors=True)


class MemoryCopies:
    """The copies on one node.

    Args:
        folder: see `memory_folder`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, checkpoint: CheckpointId, rank: int, index: dict[str, Any], content: memoryview) -> None:
        """Store a rank's state. Raises OSError when memory is short."""
        folder = checkpoint.folder(self._folder)
        self.make_room(checkpoint, rank)
        with atomic_write(folder / rank_file(rank)) as file:
            file.write(content)
        write_json(folder / rank_index(rank), index)

    def find(self, rank: int, world_size: int, stage: int) -> list[CheckpointId]:
        """Copies from which a rank of this world size and ZeRO stage can go on; every byte is right."""
        return [c for c in self.complete(rank) if self._serves(c, rank, world_size, stage)]

    def indexes(self, checkpoint: CheckpointId) -> tuple[Path, dict[int, dict[str, Any]]]:
        """Folder of a copy, and the indexes of all ranks that are here."""
        folder = checkpoint.folder(self._folder)
        return folder, {int(path.stem.split("-")[1]): read_json(path) for path in sorted(folder.glob("rank-*.json"))}

    def paths(self, checkpoint: CheckpointId, rank: int) -> tuple[Path, Path]:
        """State and index of one rank."""
        folder = checkpoint.folder(self._folder)
        return folder / rank_file(rank), folder / rank_index(rank)

    def complete(self, rank: int) -> list[CheckpointId]:
        """Copies of a rank whose writing has ended, newest first."""
        found = [CheckpointId.parse(path.parent.name) for path in self._folder.glob(f"*/{rank_index(rank)}")]
        return sorted((c for c in found if c), key=lambda c: (c.step, c.generation), reverse=True)

    def make_room(self, coming: CheckpointId, rank: int) -> None:
        """Before a copy of a rank is written: its folder, and none of the older ones but the newest."""
        coming.folder(self._folder).mkdir(parents=True, exist_ok=True)
        for old in [c for c in self.complete(rank) if c != coming][_KEPT - 1 :]:
            for path in reversed(self.paths(old, rank)):
                path.unlink(missing_ok=True)
            with suppress(OSError):  # not empty: other ranks still have theirs there
                old.folder(self._folder).rmdir()

    def _serves(self, checkpoint: CheckpointId, rank: int, world_size: int, stage: int) -> bool:
        folder = checkpoint.folder(self._folder)
        wanted = range(world_size) if stage == 0 else [rank]  # ZeRO 0: each saves another part of what all have
        try:
            for number in wanted:
                index = read_json(folder / rank_index(number))
                facts = index["facts"]
                if (facts["world_size"], facts["zero_stage"]) != (world_size, stage):
                    return False
                verify_file(folder / rank_file(number), index["bytes"], index["xxh3"])
        except CorruptFileError:
            return False
        return True


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
