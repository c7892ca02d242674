"""JSON lines: one object per line."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from drivetrain_pipelines.raw.chunks import Chunk
from drivetrain_pipelines.raw.readers.errors import readable
from drivetrain_pipelines.raw.records import FlawedRow, Needed, Row, Rows
from drivetrain_pipelines.raw.sources import open_file
from drivetrain_pipelines.spec import StorageSpec

_BLOCK = 1 << 20


def read_json_lines(chunk: Chunk, storage: StorageSpec, _: Needed | None) -> Rows:
    """Read the lines that begin in the chunk. Lines end at a line feed only. Raises `PrepareError`."""
    (url,) = chunk.urls
    with readable(url, "JSON lines"), open_file(url, storage) as file:
        begin, content = 0, b""
        if chunk.start == chunk.stop:
            content = bytes(file.read())
        else:
            begin = chunk.start
            if begin:
                file.seek(begin - 1)
                begin += len(file.readline()) - 1
            if begin < chunk.stop:
                content = bytes(file.read(chunk.stop - begin))
                if not content.endswith(b"\n"):
                    content += bytes(file.readline())

    @cache
    def lines_before() -> int:
        return _count_lines(url, begin, storage)

    rows, numbers, bad = parse_lines(content)
    return Rows(url, rows, lambda row: f"{url}, line {lines_before() + numbers[row]}", bad)


def parse_lines(content: bytes) -> tuple[list[Row], list[int], dict[int, str]]:
    """Return a record for each line that is not blank, its number from 1, and the lines that are not records."""
    rows: list[Row] = []
    numbers: list[int] = []
    bad: dict[int, str] = {}
    for number, line in enumerate(content.split(b"\n"), start=1):
        text = decoded(line)
        if not text.strip():
            continue
        try:
            row = parse_json(text)
            problem = "" if isinstance(row, dict) else "it is not an object"
        except ValueError as error:
            row, problem = {}, str(error)
        if problem:
            bad[len(rows)] = problem
        rows.append(row if isinstance(row, dict) else {})
        numbers.append(number)
    return rows, numbers, bad


def decoded(content: bytes) -> str:
    """Decode JSON; bytes that are not UTF-8 are kept as surrogates, which only matter in a field that is used."""
    return content.decode("utf-8", errors="surrogateescape").removeprefix("\ufeff")


def parse_json(text: str) -> Any:
    """Parse JSON. Fields that an object has twice have no value, see `FlawedRow`. Raises ValueError with a sentence."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        problem = error.msg.removesuffix(" at").removesuffix(" starting")
        raise ValueError(f"it is not JSON: {problem} at character {error.pos + 1}") from None
    except ValueError:
        raise ValueError("it is not JSON that can be used: a number has too many digits") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    flaws = {name: "an object in it has a field twice" for name, value in row.items() if _is_flawed(value)}
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        flaws |= {name: "the record has it twice" for name in row if names.count(name) > 1}
    return FlawedRow(row, flaws, whole=False) if flaws else row


def _is_flawed(value: Any) -> bool:
    if isinstance(value, list) and value and isinstance(value[0], (dict, list)):
        return any(map(_is_flawed, value))
    return isinstance(value, FlawedRow)


def _count_lines(url: str, stop: int, storage: StorageSpec) -> int:
    """Count the lines that end before a byte of a file; only for a message."""
    count = 0
    with readable(url, "JSON lines"), open_file(url, storage) as file:
        while stop > 0 and (block := file.read(min(_BLOCK, stop))):
            count += block.count(b"\n")
            stop -= len(block)
    return count
