"""An append-only file of tracking records, with the offset of shipped records and totals over all records.

Records survive the process. A record that is shipped twice after a crash has the same time, and MLflow stores it once.
The totals are written periodically with their offset, so that opening a spool reads only the records after that offset.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, NamedTuple

from drivetrain_pipelines.errors import CorruptFileError
from drivetrain_pipelines.storage.json_files import read_json, write_json

from drivetrain.tracking.mark import Mark
from drivetrain.tracking.totals import Record, Totals

_log = logging.getLogger(__name__)
_SPOOL, _TOTALS = "spool.jsonl", "totals.json"
_TOTALS_EVERY_BYTES = 256 << 10  # about a thousand records, which take about 10 ms to read
_BLOCK_BYTES = 64 << 10


class Pending(NamedTuple):
    """Records to be shipped, the offset after the last one, and the offset of each."""

    records: list[Record]
    end: int
    offsets: list[int]


class Spool:
    """The records of one run, with one writing process and one shipping thread.

    Args:
        folder: created if it does not exist.

    Attributes:
        totals: over all records.
        mark: what has been shipped.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._mark_path = folder / _SPOOL, folder / "shipped.json"
        _cut_torn_line(self._path)
        self._file = self._path.open("ab", buffering=0)
        self._end = self._file.tell()
        self._lock = threading.Lock()
        reader = SpoolReader(folder)
        self.totals = reader.update()
        self._totals_end = reader.began
        self._write_totals(_TOTALS_EVERY_BYTES)
        self.mark = self._read_mark()

    def append(self, record: Record) -> None:
        """Append one record. Raises OSError when the disk is full; the file then keeps no part of the record."""
        line = memoryview(json.dumps(record).encode() + b"\n")
        with self._lock:
            try:
                written = 0
                while written < len(line):
                    written += self._file.write(line[written:]) or 0
            except OSError:
                self._file.truncate(self._end)
                raise
            self._end += len(line)
            self.totals.add(record)
            self._write_totals(_TOTALS_EVERY_BYTES)

    def size(self) -> int:
        """Return the offset after the last record."""
        return self._end

    def records(self) -> Iterator[Record]:
        """Yield all records, shipped ones included."""
        return read_records(self._path.parent)

    def pending(self, limit_bytes: int = 1 << 20) -> Pending:
        """Return about ``limit_bytes`` of records that are not shipped yet."""
        with self._path.open("rb") as file:
            file.seek(self.mark.offset)
            lines = file.readlines(limit_bytes)
        whole = [line for line in lines if line.endswith(b"\n")]
        ends = [*accumulate(map(len, whole), initial=self.mark.offset)]
        return Pending([json.loads(line) for line in whole], ends[-1], ends[:-1])

    def late(self) -> Pending:
        """Return the records of which some has not arrived when they were shipped."""
        offsets = sorted(self.mark.late)
        with self._path.open("rb") as file:
            records = [next(_records_after(file, offset))[0] for offset in offsets]
        return Pending(records, self.mark.offset, offsets)

    def store_mark(self, mark: Mark) -> None:
        """Record what has been shipped."""
        write_json(self._mark_path, mark.to_json())
        self.mark = mark

    def close(self) -> None:
        """Close the file and keep the records."""
        with self._lock:
            self._write_totals(0)
            self._file.close()

    def _write_totals(self, max_lag_bytes: int) -> None:
        """Write the totals if the stored ones lag behind by more than ``max_lag_bytes``."""
        if self._end - self._totals_end <= max_lag_bytes:
            return
        try:
            write_json(self._path.with_name(_TOTALS), {"offset": self._end, "totals": self.totals.to_json()})
            self._totals_end = self._end
        except OSError as error:  # not fatal: the totals can be recomputed from the records
            _log.warning("the totals of %s: %s", self._path, error)

    def _read_mark(self) -> Mark:
        """Return the stored mark; without one everything is shipped again, which is idempotent."""
        try:
            mark = Mark.from_json(read_json(self._mark_path))
        except (CorruptFileError, KeyError, ValueError, TypeError, AttributeError):
            return Mark()
        return mark if mark.offset <= self._end else Mark(identity=mark.identity)  # a crash of the machine lost records


class SpoolReader:
    """Totals of a spool that another process may be writing. Each update reads only new records.

    Args:
        folder: of the spool, which may not exist yet.

    Attributes:
        offset: after the last record in the totals.
        began: offset at which the last update started to read.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _SPOOL
        self._totals, self.offset = _read_totals(folder)
        self.began = self.offset

    def update(self) -> Totals:
        """Return the totals over all current records."""
        with suppress(FileNotFoundError), self._path.open("rb") as file:
            if not _ends_a_line(file, self.offset):  # the totals belong to another file
                self._totals, self.offset = Totals(), 0
            self.began = self.offset
            for record, end in _records_after(file, self.offset):
                self._totals.add(record)
                self.offset = end
        return self._totals


def read_records(folder: Path) -> Iterator[Record]:
    """Yield all records of a spool that another process may be writing; none if it does not exist."""
    with suppress(FileNotFoundError), (folder / _SPOOL).open("rb") as file:
        yield from (record for record, _ in _records_after(file, 0))


def _records_after(file: BinaryIO, offset: int) -> Iterator[tuple[Record, int]]:
    """Yield complete records from an offset on, and the offset after each."""
    file.seek(offset)
    for line in file:
        if not line.endswith(b"\n"):
            return
        offset += len(line)
        yield json.loads(line), offset


def _read_totals(folder: Path) -> tuple[Totals, int]:
    """Return the stored totals and their offset; empty totals at 0 if they cannot be read."""
    try:
        found = read_json(folder / _TOTALS)
        return Totals.from_json(found["totals"]), int(found["offset"])
    except (
        CorruptFileError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
    ):  # missing, incomplete, or of another version
        return Totals(), 0


def _ends_a_line(file: BinaryIO, offset: int) -> bool:
    """Check whether a record ends at an offset; 0 counts as an end."""
    return offset == 0 or os.pread(file.fileno(), 1, offset - 1) == b"\n"


def _cut_torn_line(path: Path) -> None:
    """Remove the incomplete last line of a writer that was killed; its record is logged again."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = size = file.seek(0, os.SEEK_END)
        while end:
            begin = max(0, end - _BLOCK_BYTES)
            newline = os.pread(file.fileno(), end - begin, begin).rfind(b"\n")
            if newline >= 0:
                end = begin + newline + 1
                break
            end = begin
        if end < size:
            file.truncate(end)
