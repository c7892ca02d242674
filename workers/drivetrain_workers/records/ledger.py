"""The ledger: for every step, which samples it consumed, on which world, and what came out.

Written in pieces, one ahead of each checkpoint's commit. After a failure the steps behind the last checkpoint are done
again by a later generation, whose records replace theirs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drivetrain_pipelines.storage.checksums import read_json, write_json

from drivetrain_workers.records.run_folder import CheckpointId

Record = dict[str, Any]


def write(folder: Path, name: CheckpointId, records: list[Record]) -> None:
    """Store the records since the checkpoint before ``name``."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("*.tmp"):  # by a rank 0 that was killed in this very place; there is one at a time
        left.unlink(missing_ok=True)
    write_json(_piece(folder, name), records)


def read(folder: Path) -> list[Record]:
    """All records in order of step, each step once: the newest generation's.

    Raises:
        CorruptFileError: names the piece.
    """
    by_step: dict[int, Record] = {}
    names = [name for path in folder.glob("step-*.json") if (name := CheckpointId.parse(path.stem))]
    for name in sorted(names, key=lambda n: (n.generation, n.step)):
        by_step.update({record["step"]: record for record in read_json(_piece(folder, name))})
    return [by_step[step] for step in sorted(by_step)]


def _piece(folder: Path, name: CheckpointId) -> Path:
    return folder / f"{name.folder(folder).name}.json"
