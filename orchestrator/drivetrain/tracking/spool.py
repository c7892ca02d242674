"""An append-only file of tracking records, how far they have been shipped, and totals over all of them.

What is written here survives the process; what was shipped twice because the process died in between is the same
record with the same time, which MLflow stores once. The totals are written once in a while, with the offset that they
reach: opening a spool reads the records behind that offset, however long the run is.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from drivetrain_pipelines.errors import CorruptFileError
from drivetrain_pipelines.storage.checksums import read_json, write_json

from drivetrain.tracking.totals import Record, Totals

_log = logging.getLogger(__name__)
_SPOOL, _TOTALS = "spool.jsonl", "totals.json"
_TOTALS_EVERY_BYTES = 256 << 10  # about a thousand records, which are read in some ten milliseconds
_BLOCK_BYTES = 64 << 10


class Spool:
    """One run's records, with one writing process and one shipper.

    Args:
        folder: made if it is not there.

    Attributes:
        totals: over all records.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._mark = folder / _SPOOL, folder / "shipped.json"
        _cut_torn_line(self._path)
        self._file = self._path.open("ab", buffering=0)
        self._end = self._file.tell()
        self._lock = threading.Lock()
        reader = SpoolReader(folder)
        self.totals = reader.update()
        self._totals_end = reader.began
        self._keep_totals(_TOTALS_EVERY_BYTES)
        self.shipped = self._read_mark()

    def append(self, record: Record) -> None:
        """Add one record. Raises OSError when the disk is full; no part of the record stays then."""
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
            self._keep_totals(_TOTALS_EVERY_BYTES)

    def size(self) -> int:
        """Offset behind the last record."""
        return self._end

    def records(self) -> Iterator[Record]:
        """Yield all records, shipped ones included."""
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
        with self._lock:
            self._keep_totals(0)
            self._file.close()

    def _keep_totals(self, at_most_behind: int) -> None:
        """Write the totals, unless the ones that were written last miss no more bytes than that."""
        if self._end - self._totals_end <= at_most_behind:
            return
        try:
            write_json(self._path.with_name(_TOTALS), {"offset": self._end, "totals": self.totals.to_json()})
            self._totals_end = self._end
        except OSError as error:  # the records are what counts: the totals can be made of them
            _log.warning("the totals of %s: %s", self._path, error)

    def _read_mark(self) -> int:
        try:
            mark = int(read_json(self._mark))
        except CorruptFileError:  # none yet, or torn: shipping again from the start adds nothing
            return 0
        return mark if mark <= self._end else 0  # the machine went down before the records were on its disk


class SpoolReader:
    """Totals of a spool that another process may be writing. It reads only what was added since it read before.

    Args:
        folder: of the spool, which need not be there yet.

    Attributes:
        offset: behind the last record that the totals hold.
        began: where the last update has begun to read.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _SPOOL
        self._totals, self.offset = _read_totals(folder)
        self.began = self.offset

    def update(self) -> Totals:
        """Return the totals over all records that are there now."""
        with suppress(FileNotFoundError), self._path.open("rb") as file:
            if not _ends_a_line(file, self.offset):  # these are not the totals of this file
                self._totals, self.offset = Totals(), 0
            self.began = self.offset
            for record, end in _records_behind(file, self.offset):
                self._totals.add(record)
                self.offset = end
        return self._totals


def read_records(folder: Path) -> Iterator[Record]:
    """Yield all records of a spool that another process may be writing; none where there is none."""
    with suppress(FileNotFoundError), (folder / _SPOOL).open("rb") as file:
        yield from (record for record, _ in _records_behind(file, 0))


def _records_behind(file: BinaryIO, offset: int) -> Iterator[tuple[Record, int]]:
    """Yield whole records from an offset on, and the offset behind each."""
    file.seek(offset)
    for line in file:
        if not line.endswith(b"\n"):
            return
        offset += len(line)
        yield json.loads(line), offset


def _read_totals(folder: Path) -> tuple[Totals, int]:
    """Return the totals that were written last, and their offset; empty ones at 0 where they cannot be read."""
    try:
        found = read_json(folder / _TOTALS)
        return Totals.from_json(found["totals"]), int(found["offset"])
    except (CorruptFileError, KeyError, ValueError, TypeError, AttributeError):  # none yet, torn, of another version
        return Totals(), 0


def _ends_a_line(file: BinaryIO, offset: int) -> bool:
    """Whether a record ends at an offset; 0 is as good as the end of one."""
    return offset == 0 or os.pread(file.fileno(), 1, offset - 1) == b"\n"


def _cut_torn_line(path: Path) -> None:
    """Remove half a line that a writer has left which was killed within a write; its record is logged again."""
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
