from __future__ import annotations

import os
from pathlib import Path

import pytest
from drivetrain_pipelines.checksums import block_digests
from drivetrain_workers.checkpoints import memory
from drivetrain_workers.checkpoints.memory import MemoryCopies, own_memory_folder, remove_orphans
from drivetrain_workers.checkpoints.store import CheckpointId


def write(copies: MemoryCopies, step: int, rank: int, world_size: int = 2, stage: int = 2, generation: int = 1) -> None:
    content = memoryview(bytes([step, rank]) * 50)
    facts = {"world_size": world_size, "zero_stage": stage}
    index = {"facts": facts, "bytes": len(content), "xxh3": block_digests(content)}
    copies.write(CheckpointId(step, generation), rank, index, content)


def steps(copies: MemoryCopies, rank: int, world_size: int = 2, stage: int = 2) -> list[int]:
    return [checkpoint.step for checkpoint in copies.find(rank, world_size, stage)]


def test_the_two_newest_of_each_rank_stay(tmp_path: Path) -> None:
    copies = MemoryCopies(tmp_path)
    for step in (2, 4, 6):
        write(copies, step, 0)
    write(copies, 4, 1)
    assert steps(copies, 0) == [6, 4]
    assert steps(copies, 1) == [4]
    write(copies, 4, 0, generation=2)  # done again by a later generation
    write(copies, 6, 0, generation=2)
    assert steps(copies, 0) == [6, 6]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000004.g0001",  # of rank 1
        "step-00000006.g0001",
        "step-00000006.g0002",
    ]
    folder, indexes = copies.indexes(CheckpointId(4, 1))
    assert folder == tmp_path / "step-00000004.g0001"
    assert list(indexes) == [1]


def test_what_does_not_fit_or_is_damaged_is_not_found(tmp_path: Path) -> None:
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
    index.unlink()  # as if its writing had been cut off
    assert steps(copies, 1) == [2]


def test_without_partitions_all_ranks_must_be_here(tmp_path: Path) -> None:
    """Under ZeRO 0 each rank saves another part of what all have."""
    copies = MemoryCopies(tmp_path)
    write(copies, 2, 0, stage=0)
    assert steps(copies, 0, stage=0) == []
    write(copies, 2, 1, stage=0)
    assert steps(copies, 0, stage=0) == [2]


def test_memory_of_the_dead_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_SHARED_MEMORY", tmp_path)
    living, dead, own = (memory.memory_folder(name, 0) for name in ("living", "dead", "own"))
    owned = own_memory_folder(living)
    os.close(own_memory_folder(dead))
    write(MemoryCopies(dead), 2, 0)
    remove_orphans(own)
    assert living.is_dir()
    assert not dead.exists()
    os.close(owned)
