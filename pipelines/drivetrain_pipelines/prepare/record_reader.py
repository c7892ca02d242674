"""Records for a job: read by its own reader or by format, then changed by its transform."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from drivetrain_pipelines.raw.records import Chunk, Records, read, table_of
from drivetrain_pipelines.raw.sources import local_file
from drivetrain_pipelines.spec import DataSpec
from drivetrain_pipelines.user_code import load_function


class RecordReader:
    """Reads chunks of raw data.

    Args:
        spec: the job's data section.
        code_folder: directory of the user's code.
    """

    def __init__(self, spec: DataSpec, code_folder: Path) -> None:
        self._spec = spec

        def load(path: str | None, key: str) -> Callable[[Any], Any] | None:
            if path is None:
                return None
            function = load_function(path, str(code_folder), key)
            asked = inspect.signature(function).parameters
            return partial(function, **{name: Path(file) for name, file in spec.files.items() if name in asked})

        self._transform = load(spec.transform, "data.transform")
        self._reader = load(spec.reader, "data.reader")

    def read(self, chunk: Chunk, limit: int | None = None) -> Records:
        """Read the records of a chunk, or the first ones.

        Raises as `drivetrain_pipelines.raw.records.read`, and any user error.
        """
        if self._reader:
            with local_file(chunk.urls[0], self._spec.storage) as path:
                return self.transformed(Records(table_of(list(islice(self._reader(path), limit)))))
        records = read(chunk, self._spec.storage, self._spec.on_error == "skip")
        return self.transformed(replace(records, table=records.table.slice(0, limit)))

    def transformed(self, records: Records) -> Records:
        """Apply the job's transform to records."""
        if self._transform is None:
            return records
        rows = records.table.to_pylist()
        if self._spec.kind == "tokens":
            column = self._spec.text_column
            made = [{**row, column: self._transform(row[column])} for row in rows]
        else:
            results = (self._transform(row) for row in rows)
            made = [new for result in results for new in (result if isinstance(result, list) else [result]) if new]
        return Records(table_of(made), records.skipped)
