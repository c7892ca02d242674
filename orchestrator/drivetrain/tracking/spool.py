"""An append-only file of tracking records, and how far they have been shipped.

What is written here survives the process; what was shipped twice because the process died in between is the same
record with the same time, which MLflow stores once.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from drivetrain_pipelines.errors import CorruptFileError
from drivetrain_pipelines.storage.checksums import read_json, write_json

Record = dict[str, Any]
_SPOOL = "spool.jsonl"


class Spool:
    """One run's records, with one writer and one shipper.

    Args:
        folder: made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._mark = folder / _SPOOL, folder / "shipped.json"
        self._cut_torn_line()
        self._file = self._path.open("ab")
        self.shipped = self._read_mark()

    def append(self, record: Record) -> None:
        """Add one record. Raises OSError when the disk is full."""
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()

    def size(self) -> int:
        """Offset behind the last record."""
        return self._file.tell()

    def records(self) -> list[Record]:
        """All records, shipped ones included."""
        return read_records(self._path.parent)

    def pending(self, limit_bytes: int = 1 << 20) -> tuple[list[Record], int]:
        """Records that were not shipped yet (about ``limit_bytes`` of them), and the offset behind them."""
        with self._path.open("rb") as file:
            file.seek(self.shipped)
            lines = file.readlines(limit_bytes)
        whole = [line for line in lines if line.endswith(b"\n")]
        return [json.loads(line) for line in whole], self.shipped + sum(map(len, whole))

    def mark_shipped(self, offset: int) -> None:
        """Everything before ``offset`` has arrived."""
        write_json(self._mark, offset)
        self.shipped = offset

    def close(self) -> None:
        """Close the file; records stay."""
        self._file.close()

    def _read_mark(self) -> int:
        try:
            return int(read_json(self._mark))
        except CorruptFileError:  # none yet, or torn: shipping again from the start adds nothing
            return 0

    def _cut_torn_line(self) -> None:
        """A writer that was killed within a write may have left half a line; its record is told again."""
        if self._path.exists():
            whole = self._path.read_bytes().rfind(b"\n") + 1
            os.truncate(self._path, whole)


def read_records(folder: Path) -> list[Record]:
    """All records of a spool that somebody else may be writing; none where there is none."""
    path = folder / _SPOOL
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]
