from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from drivetrain_pipelines.errors import CorruptFileError
from drivetrain_pipelines.storage.checksums import block_digests
from drivetrain_workers.checkpoints import memory_copies
from drivetrain_workers.checkpoints.manifest import Contents, Manifest, RankIndex
from drivetrain_workers.checkpoints.memory_copies import MemoryCopies, RankCopy, acquire_memory_folder, remove_orphans
from drivetrain_workers.records.run_folder import CheckpointId

from tests.unit.step_records import step_record


def write(copies: MemoryCopies, step: int, rank: int, world_size: int = 2, stage: int = 2, generation: int = 1) -> None:
    content = memoryview(bytes([step, rank]) * 50)
    index = RankIndex(Contents(), len(content), block_digests(content))
    copy = RankCopy(Manifest(step, 8 * step, world_size, stage, {}), index, (step_record(step),))
    copies.write(CheckpointId(step, generation), rank, copy, content)


def steps(copies: MemoryCopies, rank: int, world_size: int = 2, stage: int = 2) -> list[int]:
    found = copies.find(rank, world_size, stage)
    return [checkpoint.step for checkpoint in found if is_sound(copies, checkpoint, rank)]


def is_sound(copies: MemoryCopies, checkpoint: CheckpointId, rank: int) -> bool:
    try:
        copies.verify(checkpoint, rank)
    except CorruptFileError:
        return False
    return True


def test_the_two_newest_copies_of_each_rank_are_kept(tmp_path: Path) -> None:
    copies = MemoryCopies(tmp_path)
    for step in (2, 4, 6):
        write(copies, step, 0)
    write(copies, 4, 1)
    assert steps(copies, 0) == [6, 4]
    assert steps(copies, 1) == [4]
    write(copies, 4, 0, generation=2)  # repeated by a later generation
    write(copies, 6, 0, generation=2)
    assert steps(copies, 0) == [6, 6]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000004.g0001",  # of rank 1
        "step-00000006.g0001",
        "step-00000006.g0002",
    ]
    folder, copy = copies.open(CheckpointId(4, 1), 1)
    assert folder == tmp_path / "step-00000004.g0001"
    assert copy.index.bytes == 100
    assert copy.manifest == Manifest(4, 32, 2, 2, {})
    assert copy.records == (step_record(4),)


def test_unfit_or_corrupt_copies_are_not_found(tmp_path: Path) -> None:
    copies = MemoryCopies(tmp_path)
    write(copies, 2, 1)
    write(copies, 4, 1)
    assert steps(copies, 1, world_size=3) == []
    assert steps(copies, 1, stage=1) == []
    state, index = copies.paths(CheckpointId(4, 1), 1)
    damaged = bytearray(state.read_bytes())
    damaged[7] ^= 1
    state.write_bytes(damaged)
    assert steps(copies, 1) == [2]
    index.unlink()  # like an interrupted write
    assert steps(copies, 1) == [2]


def test_copies_newer_than_the_loaded_state_are_removed(tmp_path: Path) -> None:
    """Rank 0 had written step 6 when rank 1 died: both resume from 4, which must survive the next write of a copy."""
    copies = MemoryCopies(tmp_path)
    for step in (2, 4, 6):
        write(copies, step, 0)
    (tmp_path / "step-00000006.g0001" / "rank-00000.bin.123.tmp").write_bytes(b"left by a process that was killed")
    copies.remove_newer(0, CheckpointId(4, 1))
    assert steps(copies, 0) == [4]
    assert not (tmp_path / "step-00000006.g0001").exists()
    copies.prepare_write(CheckpointId(6, 2), 0)
    assert steps(copies, 0) == [4]
    copies.remove_newer(0, None)
    assert steps(copies, 0) == []


def test_no_copy_leaves_partial_files(tmp_path: Path) -> None:
    copies = MemoryCopies(tmp_path)
    write(copies, 2, 0)
    for name in ("rank-00000.bin.123.tmp", "rank-00000.part"):
        (tmp_path / "step-00000002.g0001" / name).write_bytes(b"half")
    write(copies, 4, 0)
    write(copies, 6, 0)
    assert sorted({path.name for path in tmp_path.rglob("rank*")}) == ["rank-00000.bin", "rank-00000.json"]


@pytest.mark.parametrize("planted", ["link", "open folder"])
def test_a_planted_folder_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: str) -> None:
    """Every user may write to shared memory, and could create a link to other users' files there."""
    monkeypatch.setattr(memory_copies, "_SHARED_MEMORY", tmp_path)
    victim, own = tmp_path / "victim", memory_copies.memory_folder("own", 0)
    (victim / "documents").mkdir(parents=True)
    if planted == "link":
        own.parent.symlink_to(victim)
    else:
        own.parent.mkdir(mode=0o777)
        (own.parent / "documents").mkdir()
        own.parent.chmod(0o777)
    for use in (lambda: remove_orphans(own, time.time()), lambda: acquire_memory_folder(own)):
        with pytest.raises(OSError, match=r"private folder|Not a directory|symbolic"):
            use()
    assert (own.parent / "documents").is_dir()


def test_memory_of_dead_owners_is_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_copies, "_SHARED_MEMORY", tmp_path)
    living, dead, own = (memory_copies.memory_folder(name, 0) for name in ("living", "dead", "own"))
    owned = acquire_memory_folder(living)
    os.close(acquire_memory_folder(dead))
    write(MemoryCopies(dead), 2, 0)
    remove_orphans(own, time.time())
    assert dead.is_dir()  # its owner may be about to be replaced
    remove_orphans(own, time.time() + 3600)
    assert living.is_dir()
    assert not dead.exists()
    os.close(owned)
