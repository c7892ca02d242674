"""Records for a job: read by its own reader or by format, changed by its transform, converted and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from drivetrain_pipelines.errors import PrepareError
from drivetrain_pipelines.prepare.user_functions import UserFunction
from drivetrain_pipelines.raw.chunks import Chunk
from drivetrain_pipelines.raw.conversions.column import Column, Converted, is_empty, kind_of, python_values, shown
from drivetrain_pipelines.raw.conversions.contents import contents
from drivetrain_pipelines.raw.conversions.images import images
from drivetrain_pipelines.raw.conversions.numbers import numbers
from drivetrain_pipelines.raw.conversions.recordings import recordings
from drivetrain_pipelines.raw.conversions.texts import group_keys, labels, texts
from drivetrain_pipelines.raw.fields import CONTENT, GROUP, LABEL, SAMPLE, TEXT, column
from drivetrain_pipelines.raw.formats import FORMATS
from drivetrain_pipelines.raw.readers.every import read_raw
from drivetrain_pipelines.raw.readers.running_text import read_windows
from drivetrain_pipelines.raw.records import Needed, Place, Raw, Records, Row, Rows, Table, first_records, one_sample
from drivetrain_pipelines.raw.sources import local_file
from drivetrain_pipelines.spec import DataSpec
from drivetrain_pipelines.storage.arrow_types import array_of

_SKIP = "Set data.on_error to skip to leave such records out"
_SAMPLES = {"image": ("bytes", "image"), "audio": ("bytes", "audio")}
_LONGEST = 300  # characters of a sentence about a skipped record


class RecordReader:
    """Reads chunks of raw data.

    Args:
        spec: the job's data section.
        code_folder: directory of the user's code.
        predicting: the records are inputs of a trained model, which predicts their labels: they need none.
        limit: number of records to read of each chunk; running text is always read as a whole.
    """

    def __init__(self, spec: DataSpec, code_folder: Path, predicting: bool = False, limit: int | None = None) -> None:
        self._spec, self._predicting, self._limit = spec, predicting, limit
        self._transform = UserFunction("data.transform", spec.transform, spec, code_folder) if spec.transform else None
        self._reader = UserFunction("data.reader", spec.reader, spec, code_folder) if spec.reader else None
        self._needed = needed_by(spec, predicting)

    def read(self, chunk: Chunk) -> Records:
        """Read the records of a chunk: the fields that the job needs, converted.

        Raises:
            PrepareError: the file cannot be read, a column cannot be converted, or a record is bad and the job does not
                skip such records.
            UserCodeError: the job's reader or transform failed.
        """
        spec = self._spec
        by_row = self._transform is not None and spec.kind != "tokens"
        raw: Raw
        if self._reader:
            (url,) = chunk.urls
            with local_file(url, spec.storage) as path:
                rows = list(islice(self._reader.records(path, url), self._limit))
            raw = Rows(url, rows, lambda row: f"{url}, record {row + 1}")
        elif chunk.format == "text":
            if spec.kind != "tokens":
                fix = "Set data.format, or read it with data.reader"
                raise PrepareError(f"{chunk.urls[0]} is running text, which has no records for data.{spec.kind}", fix)
            table, place, bad = read_windows(chunk, spec.storage, self._transformed_text if self._transform else None)
            return self._settled(dict(zip(table.column_names, table.columns, strict=True)), bad, place)
        else:
            raw = read_raw(chunk, spec.storage, None if by_row else self._needed)
            if chunk.labels and isinstance(raw, Table):  # the labels of files are those of the job's label column
                raw = replace(raw, values={**raw.values, spec.label_column: list(chunk.labels)})
        if self._limit is not None:
            raw = first_records(raw, self._limit)
        if by_row:
            raw = self._transformed(raw)
        return self._converted(raw, chunk)

    def read_text(self, text: str) -> Records:
        """Return one text, given by the user, as a record. Raises as `read`."""
        rows = [{self._spec.text_column: text}]
        return self._converted(Rows("the text", rows, lambda _: "the text"), Chunk("", ("the text",)), only_text=True)

    def _transformed_text(self, text: Any, place: str) -> tuple[str, str]:
        """Return the text that the job's transform returns, and what is wrong with it."""
        assert self._transform
        made = self._transform(text, place)
        if isinstance(made, str):
            return made, ""
        return "", f"{self._transform.name} returned {shown(made)} ({kind_of(made)}), not a text"

    def _transformed(self, raw: Raw) -> Rows:
        """Apply the job's transform to whole records."""
        assert self._transform
        rows: list[Row] = []
        places: list[str] = []
        bad: dict[int, str] = {}

        def add(row: Any, place: str) -> None:
            if not isinstance(row, Mapping):
                allowed = "a dictionary, a list of dictionaries or None"
                bad[len(rows)] = f"{self._transform.name} returned {shown(row)} ({kind_of(row)}); allowed: {allowed}"  # type: ignore[union-attr]
            rows.append(dict(row) if isinstance(row, Mapping) else {})
            places.append(place)

        for index, row in raw.dictionaries():
            place = raw.place(index)
            if isinstance(row, str):
                bad[len(rows)] = row
                rows.append({})
                places.append(place)
                continue
            made = self._transform(row, place)
            if isinstance(made, list):
                for number, each in enumerate(made, start=1):
                    if each is not None:
                        add(each, f"{place}, part {number}")
            elif made is not None:
                add(made, place)
        return Rows(raw.file, rows, places.__getitem__, bad)

    def _converted(self, raw: Raw, chunk: Chunk, only_text: bool = False) -> Records:
        """Convert the fields that the job needs."""
        spec = self._spec
        needed = Needed((spec.text_column,)) if only_text else self._needed
        columns, bad = raw.columns(needed)
        if self._predicting and spec.kind == "columns" and len(raw) and not {*columns} - {spec.label_column}:
            raise PrepareError(f"{raw.file} has none of the columns {', '.join(map(repr, spec.columns or ()))}")
        if not len(raw):
            return Records(pa.table({}))  # of an empty file not even the types are known
        single = chunk.format in FORMATS and FORMATS[chunk.format].file_per_record
        bad, made = dict(bad), dict[str, Any]()

        def convert(field: str, name: str, converted: Converted) -> None:
            made[field] = converted.values
            prefix = "" if single and name in ("bytes", "text") else f"column {name!r}: "
            for row, sentence in converted.bad.items():
                bad.setdefault(row, prefix + sentence)

        def of(name: str) -> Column:
            return Column(name, columns[name], raw.file, raw.place)

        if spec.kind == "tokens":
            source = of(spec.text_column)
            if self._transform:
                source = self._with_transform(source, bad)
            convert(TEXT, spec.text_column, texts(source))
        if needed.sample:
            name, values, both = one_sample(columns, needed.sample)
            for row, sentence in both.items():
                bad.setdefault(row, sentence)
            sample = Column(name, values, raw.file, raw.place)
            decoded = images(sample, spec.image) if spec.image else recordings(sample, spec.audio)  # type: ignore[arg-type]
            convert(SAMPLE, name, decoded)
            convert(CONTENT, name, contents(sample, decoded))
        for name in () if spec.kind == "tokens" or only_text else spec.columns or ():
            found = numbers(of(name), as_text=chunk.format == "csv") if name in columns else None
            if self._predicting and name == spec.label_column and (found is None or found.bad):  # it is predicted
                made[column(name)] = np.zeros(len(next(iter(columns.values()))), np.int64)
            elif found is not None:
                convert(column(name), name, found)
        if not only_text and spec.label_column in columns and spec.has_label and not self._predicting:
            convert(LABEL, spec.label_column, labels(of(spec.label_column)))
        if spec.split_by and not only_text:
            convert(GROUP, spec.split_by, group_keys(_portable(of(spec.split_by), single)))
        return self._settled(made, bad, raw.place)

    def _with_transform(self, source: Column, bad: dict[int, str]) -> Column:
        """Apply the job's transform to the values of the text column."""
        values = python_values(source.values) if isinstance(source.values, pa.Array) else source.values
        made: list[Any] = []
        for row, value in enumerate(values):
            if row in bad or is_empty(value):
                made.append(value)
                continue
            text, problem = self._transformed_text(value, source.place(row))
            made.append(text)
            if problem:
                bad[row] = problem
        return Column(source.name, made, source.file, source.place)

    def _settled(self, made: dict[str, Any], bad: dict[int, str], place: Place) -> Records:
        """Leave bad records out, or raise for the first of them."""
        skipped = [f"{place(row)}: {sentence}" for row, sentence in sorted(bad.items())]
        if skipped and self._spec.on_error == "fail":
            raise PrepareError(skipped[0], _SKIP)
        count = len(next(iter(made.values()), []))
        good = np.ones(count, bool)
        good[list(bad)] = False
        if not good.any():
            return Records(pa.table({}), [text[:_LONGEST] for text in skipped])
        fields = {name: _chosen(values, None if good.all() else good) for name, values in made.items()}
        return Records(pa.table(fields), [text[:_LONGEST] for text in skipped])


def needed_by(spec: DataSpec, predicting: bool = False) -> Needed:
    """Return the fields that a job reads. A label column that the job names must exist.

    A model need not read all columns to predict, and not the label.
    """
    required = [spec.text_column] if spec.kind == "tokens" else list(spec.columns or ())
    optional: list[str] = []
    if predicting and spec.kind != "tokens":
        required, optional = [], required
    elif spec.has_label and not predicting:
        named = spec.label_column != type(spec).model_fields["label_column"].default
        (required if named else optional).append(spec.label_column)
    if spec.split_by:
        required.append(spec.split_by)
    return Needed(tuple(required), tuple(optional), _SAMPLES.get(spec.kind, ()), spec.kind)


def _portable(source: Column, single: bool) -> Column:
    """Return a column of group keys in which files do not depend on where the source is: ``folder/name``."""
    if not single or source.name != "file":
        return source
    return Column(source.name, ["/".join(url.rsplit("/", 2)[-2:]) for url in source.values], source.file, source.place)


def _chosen(values: Any, good: Any) -> pa.Array | pa.ChunkedArray:
    if isinstance(values, np.ndarray):
        return array_of(values if good is None else values[good])
    return values if good is None else values.filter(pa.array(good))
