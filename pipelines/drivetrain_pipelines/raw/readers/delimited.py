"""CSV and TSV: text with a line of names, not typed."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Iterator

from drivetrain_pipelines.errors import PrepareError
from drivetrain_pipelines.raw.chunks import Chunk
from drivetrain_pipelines.raw.conversions.column import Values
from drivetrain_pipelines.raw.formats import COMPRESSIONS
from drivetrain_pipelines.raw.readers.errors import readable
from drivetrain_pipelines.raw.records import Needed, Table, check_unique
from drivetrain_pipelines.raw.sources import open_file
from drivetrain_pipelines.spec import StorageSpec

_OTHER_DELIMITERS = {";": "semicolons", "\t": "tabs", ",": "commas", "|": "vertical bars"}


_MIXED = {True: "ends with a carriage return alone", False: "ends with a line feed"}
_QUOTE = "End all lines in the same way; put values with line ends in quotation marks"


class _Lines:
    """Yields the lines of a text and keeps the last one."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines, self.last = iter(lines), ""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.last = next(self._lines)
        return self.last

    @property
    def ends_alone(self) -> bool:
        """Whether the line ends with a carriage return without a line feed."""
        return self.last.endswith("\r")


def read_delimited(chunk: Chunk, storage: StorageSpec, needed: Needed | None) -> Table:
    """Read the needed columns; every value is text.

    Raises:
        PrepareError: no line of names, names that are missing or not unique, or another character between the columns.
    """
    (url,) = chunk.urls
    delimiter = "\t" if _is_tsv(url) else ","
    csv.field_size_limit(sys.maxsize)  # the default refuses fields of 128 KiB
    with (
        readable(url, "a CSV file"),
        open_file(url, storage) as file,
        io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="") as lines,
    ):
        text = _Lines(lines)
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            names = next((row for row in reader if row), [])
        except csv.Error as error:
            raise PrepareError(f"{url}, line 1: {_problem(error)}", "The first line must hold the names") from error
        _check_names(names, needed, url, delimiter)
        used = range(len(names)) if needed is None else [n for n, name in enumerate(names) if name in needed.names]
        columns: list[list[str]] = [[] for _ in used]
        starts: list[int] = []
        bad: dict[int, str] = {}
        alone = text.ends_alone
        while True:
            start = reader.line_num + 1
            try:
                row, problem = next(reader), ""
            except StopIteration:
                break
            except csv.Error as error:
                row, problem = ["", *names], _problem(error)
            if text.ends_alone != alone and text.last.endswith(("\n", "\r")):
                raise PrepareError(f"{url}, line {start} {_MIXED[text.ends_alone]}, unlike the lines before", _QUOTE)
            if not row:
                continue
            if len(row) != len(names):
                bad[len(starts)] = problem or f"{len(row)} columns instead of {len(names)}"
                row = [""] * len(names)
            starts.append(start)
            for column, number in zip(columns, used, strict=True):
                column.append(row[number])
    values: dict[str, Values] = {names[number]: column for number, column in zip(used, columns, strict=True)}
    return Table(url, values, tuple(names), len(starts), lambda row: f"{url}, line {starts[row]}", bad)


def _check_names(names: list[str], needed: Needed | None, url: str, delimiter: str) -> None:
    fix = "The first line must hold the names of the columns"
    if not names:
        raise PrepareError(f"{url} is empty", fix)
    if any(not name.isascii() and _has_wrong_bytes(name) for name in names):
        raise PrepareError(f"{url}, line 1: it is not UTF-8", "Save the file as UTF-8")
    check_unique(names, needed, url)
    for other, what in _OTHER_DELIMITERS.items():
        inside = names[0].split(other) if len(names) == 1 and other != delimiter else []
        if len(inside) > 1 and (needed is None or not set(needed.names) & set(names)):
            allowed = "tabs in a .tsv file" if delimiter == "\t" else "commas, or tabs in a .tsv file"
            raise PrepareError(f"{url} has {what} between its columns; allowed: {allowed}", "Save it with those")


def _has_wrong_bytes(text: str) -> bool:
    return any(0xDC80 <= ord(character) <= 0xDCFF for character in text)


def _problem(error: csv.Error) -> str:
    if "unexpected end" in str(error):
        return "the quotation mark that begins a value in this record is never closed"
    return "a quotation mark ends a value, and more text follows; in a value, write it twice"


def _is_tsv(url: str) -> bool:
    name = url.lower()
    return name.removesuffix(next((ending for ending in COMPRESSIONS if name.endswith(ending)), "")).endswith(".tsv")
