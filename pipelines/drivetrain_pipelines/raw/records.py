"""Records as a format stores them, and as a job needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from drivetrain_pipelines.errors import PrepareError
from drivetrain_pipelines.raw.conversions.column import Missing, Values, is_empty, python_values

Row = dict[str, Any]  # one record: its fields by name
Place = Callable[[int], str]  # where a record is, by its index


@dataclass
class Records:
    """The converted records of a chunk.

    Attributes:
        table: exactly the fields of `drivetrain_pipelines.raw.fields` that the job needs, never null; no field at all
            where the chunk has no good record.
        skipped: bad records in the order of the file, each with its place and the problem.
    """

    table: pa.Table
    skipped: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Needed:
    """Names of the fields that a job reads.

    Attributes:
        required: every record must have them.
        optional: they are used where the records have them.
        sample: names under which the records may have the picture or the recording: each has exactly one.
        kind: kind of the samples, see `drivetrain_pipelines.spec.DataSpec.kind`.
    """

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    sample: tuple[str, ...] = ()
    kind: str = "columns"

    @property
    def names(self) -> tuple[str, ...]:
        """All names, each once."""
        return tuple(dict.fromkeys((*self.required, *self.optional, *self.sample)))


class FlawedRow(Row):
    """A record some of whose fields have no value that is clear.

    Attributes:
        flaws: a sentence for each of those fields.
        otherwise: a sentence about the fields that it lacks, if there is more to say than that they are missing.
        whole: the other fields can be used as a whole, by a function of the job.
    """

    def __init__(self, row: Row, flaws: dict[str, str], otherwise: str = "", whole: bool = True) -> None:
        super().__init__({name: value for name, value in row.items() if name not in flaws})
        self.flaws, self.otherwise, self.whole = flaws, otherwise, whole


def flaws_of(row: Row) -> dict[str, str]:
    """Return the sentences about fields without a value, by name."""
    return row.flaws if isinstance(row, FlawedRow) else {}


@dataclass(frozen=True)
class Rows:
    """Records that are dictionaries, each with its own fields: JSON, archives, functions of the job.

    Attributes:
        file: where they come from.
        rows: one dictionary for each record; anything for those in ``bad``.
        place: where a record is.
        bad: why a record could not be read, by its index.
    """

    file: str
    rows: list[Row]
    place: Place
    bad: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def columns(self, needed: Needed) -> tuple[dict[str, Values], dict[int, str]]:
        """Return the needed columns, and the records that lack a value for some field."""
        bad = dict(self.bad)
        have = {name for row in self.rows for name in needed.optional if name in row or name in flaws_of(row)}
        names = [name for name in needed.names if name not in needed.optional or name in have]
        columns: dict[str, Values] = {name: [] for name in names}
        for index, row in enumerate(self.rows):
            for name in names:
                columns[name].append(row.get(name, None) if name in row else Missing(tuple(map(str, row))))
                if isinstance(row, FlawedRow) and name not in row and (row.flaws.get(name) or row.otherwise):
                    sentence = row.flaws.get(name) or row.otherwise
                    if name not in needed.sample or name in row.flaws:
                        bad.setdefault(index, f"field {name!r}: {sentence}")
        return columns, bad

    def dictionaries(self) -> Iterator[tuple[int, Row | str]]:
        """Yield each record with its index; instead of a bad one, the reason."""
        for index, row in enumerate(self.rows):
            if index in self.bad:
                yield index, self.bad[index]
            elif isinstance(row, FlawedRow) and not row.whole:
                name, sentence = next(iter(row.flaws.items()))
                yield index, f"field {name!r}: {sentence}"
            else:
                yield index, row


@dataclass(frozen=True)
class Table:
    """Records that all have the same columns: CSV, Parquet, Arrow, files.

    Attributes:
        file: where they come from.
        values: the columns that were asked for and exist.
        names: the names of all columns of the file.
        count: number of records.
        place: where a record is.
        bad: why a record could not be read, by its index.
    """

    file: str
    values: dict[str, Values]
    names: tuple[str, ...]
    count: int
    place: Place
    bad: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.count

    def columns(self, needed: Needed) -> tuple[dict[str, Values], dict[int, str]]:
        """Return the needed columns. Raises `PrepareError` for one that does not exist."""
        missing = [name for name in needed.required if name not in self.values]
        if missing or (needed.sample and not any(name in self.values for name in needed.sample)):
            wanted = repr(missing[0]) if missing else " or ".join(map(repr, needed.sample))
            raise PrepareError(
                f"{self.file} has no column {wanted}; it has {', '.join(map(repr, self.names[:20])) or 'none'}",
                "Name the column in the job, or return it from data.transform",
            )
        return {name: self.values[name] for name in needed.names if name in self.values}, self.bad

    def dictionaries(self) -> Iterator[tuple[int, Row | str]]:
        """Yield each record with its index; instead of a bad one, the reason."""
        columns = [python_values(v) if isinstance(v, pa.Array) else v for v in self.values.values()]
        for index in range(self.count):
            if index in self.bad:
                yield index, self.bad[index]
            else:
                yield index, {name: column[index] for name, column in zip(self.values, columns, strict=True)}


Raw = Rows | Table


def first_records(raw: Raw, count: int) -> Raw:
    """Return the first records."""
    bad = {index: sentence for index, sentence in raw.bad.items() if index < count}
    if isinstance(raw, Rows):
        return replace(raw, rows=raw.rows[:count], bad=bad)
    values = {name: column[:count] for name, column in raw.values.items()}
    return replace(raw, values=values, count=min(count, raw.count), bad=bad)


def check_unique(names: list[str], needed: Needed | None, file: str) -> None:
    """Check that each needed column exists once. Raises `PrepareError`; columns that are not needed do not matter."""
    for name in needed.names if needed else dict.fromkeys(names):
        if names.count(name) > 1:
            raise PrepareError(f"{file} has {names.count(name)} columns named {name!r}", "Give each its own name")


def one_sample(columns: dict[str, Values], names: tuple[str, ...]) -> tuple[str, Values, dict[int, str]]:
    """Return the column with the pictures or recordings: of two, the value that is there. Both is a bad record."""
    found = [name for name in names if name in columns]
    if len(found) == 1:
        return found[0], columns[found[0]], {}
    values = [python_values(v) if isinstance(v, pa.Array) else v for v in (columns[name] for name in found)]
    chosen: list[Any] = []
    bad: dict[int, str] = {}
    for index, alternatives in enumerate(zip(*values, strict=True)):
        given = [value for value in alternatives if isinstance(value, dict) or not is_empty(value)]
        chosen.append(given[0] if given else alternatives[0])
        if len(given) > 1:
            bad[index] = f"it has both {' and '.join(map(repr, found))}; keep one of them in data.transform"
    return " or ".join(found), chosen, bad
