"""Checkpoints and copies without a model, for tests."""

from __future__ import annotations

from pathlib import Path

from drivetrain_pipelines.storage.checksums import block_digests
from drivetrain_pipelines.storage.json_files import write_json
from drivetrain_workers.checkpoints.manifest import Contents, Manifest, RankIndex
from drivetrain_workers.checkpoints.memory_copies import MemoryCopies, RankCopy
from drivetrain_workers.checkpoints.store import commit, rank_file, rank_index
from drivetrain_workers.protocol.step_record import Evaluation
from drivetrain_workers.records import ledger
from drivetrain_workers.records.run_folder import CheckpointId, RunFolder

from tests.unit.step_records import step_record


def content(name: CheckpointId, rank: int) -> bytes:
    """Return the state of a rank."""
    return f"state of rank {rank} at {name}".encode() * 10


def make_checkpoint(run: Path, name: CheckpointId, world_size: int, evaluation: Evaluation | None = None) -> Path:
    """Write a complete checkpoint, and the piece of the ledger for its step."""
    folder = name.folder(RunFolder(run).checkpoints)
    folder.mkdir(parents=True)
    for rank in range(world_size):
        data = content(name, rank)
        (folder / rank_file(rank)).write_bytes(data)
        write_json(folder / rank_index(rank), RankIndex(Contents(), len(data), block_digests(data)).to_json())
    ledger.write(RunFolder(run).ledger, name, [step_record(name.step)])
    commit(folder, Manifest(name.step, 8 * name.step, world_size, 2, {}, evaluation))
    return folder


def make_copy(memory: Path, name: CheckpointId, rank: int, world_size: int, stage: int = 2) -> Path:
    """Write a rank's copy; return its state file."""
    data = content(name, rank)
    index = RankIndex(Contents(), len(data), block_digests(data))
    copy = RankCopy(Manifest(name.step, 8 * name.step, world_size, stage, {}), index, (step_record(name.step),))
    copies = MemoryCopies(memory)
    copies.write(name, rank, copy, memoryview(data))
    return copies.paths(name, rank)[0]


def damage(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
