"""JSON files: an array of records, or an object that holds one."""

from __future__ import annotations

from typing import Any

from drivetrain_pipelines.errors import PrepareError
from drivetrain_pipelines.raw.chunks import Chunk
from drivetrain_pipelines.raw.readers.errors import readable
from drivetrain_pipelines.raw.readers.json_lines import decoded, parse_json, parse_lines
from drivetrain_pipelines.raw.records import Needed, Row, Rows
from drivetrain_pipelines.raw.sources import open_file
from drivetrain_pipelines.spec import StorageSpec

_ALLOWED = "an array of objects, an object with one array of objects, or one object per line"


def read_json(chunk: Chunk, storage: StorageSpec, needed: Needed | None) -> Rows:
    """Read the records of a file: one array, an object with one array, or JSON lines under another name.

    Raises:
        PrepareError: it is none of these, or two of them.
    """
    (url,) = chunk.urls
    with readable(url, "JSON"), open_file(url, storage) as file:
        content = bytes(file.read())
    try:
        document = parse_json(decoded(content))
    except ValueError as error:
        rows, numbers, bad = parse_lines(content)
        if len(rows) < 2 or 0 in bad:
            raise PrepareError(f"{url}: {error}", f"Allowed: {_ALLOWED}") from error
        return Rows(url, rows, lambda row: f"{url}, line {numbers[row]}", bad)
    records = _records(document, needed, url)
    bad = {number: "it is not an object" for number, record in enumerate(records) if not isinstance(record, dict)}
    rows = [record if isinstance(record, dict) else {} for record in records]
    return Rows(url, rows, lambda row: f"{url}, record {row + 1}", bad)


def _records(document: Any, needed: Needed | None, url: str) -> list[Any]:
    if isinstance(document, list):
        return document
    if not isinstance(document, dict):
        raise PrepareError(f"{url} holds one value", f"Allowed: {_ALLOWED}")
    arrays = [name for name, value in document.items() if _is_array_of_records(value)]
    alone = _is_record(document, needed)
    if len(arrays) == 1 and not alone:
        return list(document[arrays[0]])
    if not arrays and alone:
        return [document]
    names = ", ".join(map(repr, list(document)[:20])) or "nothing"
    if arrays:
        several = " and ".join(map(repr, arrays)) if len(arrays) > 1 else f"itself and the array {arrays[0]!r}"
        problem = f"{url} can be read in several ways, as the records of {several}"
        raise PrepareError(problem, "Keep one array of records in each file")
    raise PrepareError(f"{url} holds an object with {names}", f"Allowed: {_ALLOWED}")


def _is_array_of_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(record, dict) for record in value)


def _is_record(document: Row, needed: Needed | None) -> bool:
    """Check whether an object has the fields of a record."""
    if needed is None:
        return not any(_is_array_of_records(value) for value in document.values())
    samples = not needed.sample or any(name in document for name in needed.sample)
    return samples and all(name in document for name in needed.required)
