"""The ledger: for every step, the samples that it consumed, its world size, and its result.

Written in pieces, one before each checkpoint's commit. After a failure a later generation repeats the steps after the
last checkpoint, and its records replace the earlier ones.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from drivetrain_pipelines.storage.json_files import read_json, write_json

from drivetrain_workers.protocol.step_record import StepRecord
from drivetrain_workers.records.run_folder import CheckpointId


def write(folder: Path, name: CheckpointId, records: Sequence[StepRecord]) -> None:
    """Write the records since the checkpoint before ``name``."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in (name for name in os.listdir(folder) if name.endswith(".tmp")):
        (folder / left).unlink(missing_ok=True)  # from a killed rank 0; there is only one writer
    write_json(_piece(folder, name), [record.to_json() for record in records])


def read(folder: Path) -> list[StepRecord]:
    """Return all records in order of step, each step once: the newest generation's.

    Raises:
        CorruptFileError: names the piece.
    """
    return read_after(folder, 0)


def read_after(folder: Path, step: int) -> list[StepRecord]:
    """Return the records of the steps after ``step``, as `read`; only the pieces that contain such steps are opened."""
    by_step: dict[int, StepRecord] = {}
    needed = [name for name in _pieces(folder) if name.step > step]  # a piece is named by its last step
    for name in sorted(needed, key=lambda n: (n.generation, n.step)):
        found = map(StepRecord.from_json, read_json(_piece(folder, name)))
        by_step.update({record.step: record for record in found if record.step > step})
    return [by_step[number] for number in sorted(by_step)]


def _pieces(folder: Path) -> list[CheckpointId]:
    """Return the names of all pieces; not as `Path`, because a long run has thousands."""
    names = os.listdir(folder) if folder.is_dir() else []
    found = (CheckpointId.parse(name.removesuffix(".json")) for name in names if name.endswith(".json"))
    return [name for name in found if name]


def _piece(folder: Path, name: CheckpointId) -> Path:
    return folder / f"{name.folder(folder).name}.json"
