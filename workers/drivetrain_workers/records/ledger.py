"""The ledger: for every step, which samples it consumed, on which world, and what came out.

Written in pieces, one ahead of each checkpoint's commit. After a failure the steps behind the last checkpoint are done
again by a later generation, whose records replace theirs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from drivetrain_pipelines.storage.checksums import read_json, write_json

from drivetrain_workers.protocol.step_record import StepRecord
from drivetrain_workers.records.run_folder import CheckpointId


def write(folder: Path, name: CheckpointId, records: Sequence[StepRecord]) -> None:
    """Store the records since the checkpoint before ``name``."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in (name for name in os.listdir(folder) if name.endswith(".tmp")):
        (folder / left).unlink(missing_ok=True)  # by a rank 0 that was killed in this very place; one writes at a time
    write_json(_piece(folder, name), [record.to_json() for record in records])


def read(folder: Path) -> list[StepRecord]:
    """Return all records in order of step, each step once: the newest generation's.

    Raises:
        CorruptFileError: names the piece.
    """
    return read_after(folder, 0)


def read_after(folder: Path, step: int) -> list[StepRecord]:
    """Return the records of the steps after ``step``, as `read`; only the pieces that hold some of them are opened."""
    by_step: dict[int, StepRecord] = {}
    needed = [name for name in _pieces(folder) if name.step > step]  # a piece is named by its last step
    for name in sorted(needed, key=lambda n: (n.generation, n.step)):
        found = map(StepRecord.from_json, read_json(_piece(folder, name)))
        by_step.update({record.step: record for record in found if record.step > step})
    return [by_step[number] for number in sorted(by_step)]


def _pieces(folder: Path) -> list[CheckpointId]:
    """Return the names of all pieces; without a `Path` for each, of which a long run has thousands."""
    names = os.listdir(folder) if folder.is_dir() else []
    found = (CheckpointId.parse(name.removesuffix(".json")) for name in names if name.endswith(".json"))
    return [name for name in found if name]


def _piece(folder: Path, name: CheckpointId) -> Path:
    return folder / f"{name.folder(folder).name}.json"
