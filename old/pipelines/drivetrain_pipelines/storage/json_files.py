"""Files that are complete or absent after a crash, and JSON with a checksum."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from drivetrain_pipelines.errors import CorruptFileError
from drivetrain_pipelines.storage.checksums import content_digest

JsonObject = dict[str, Any]  # a JSON object


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Write to a temporary name, fsync, rename, fsync the folder: after a crash the file is complete or absent."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """Write JSON that carries its own checksum in the key ``xxh3``, with `atomic_write`."""
    with atomic_write(path) as file:
        file.write(json_bytes(content))


def json_bytes(content: Any) -> bytes:
    """Return the bytes that `write_json` writes."""
    return json.dumps({"content": content, "xxh3": content_digest(content)}, indent=1).encode()


def read_json(path: Path) -> Any:
    """Read the content of a file made by `write_json`.

    Raises:
        CorruptFileError: the file is missing, truncated, or changed since it was written.
    """
    try:
        return parse_json(path.read_bytes(), str(path))
    except FileNotFoundError as error:
        raise CorruptFileError(str(path), "the file is missing") from error


def parse_json(text: bytes, path: str) -> Any:
    """Parse ``text``, which came from ``path`` and was made by `write_json`. Raises as `read_json`."""
    try:
        document = json.loads(text)
        content, digest = document["content"], document["xxh3"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(path, f"not a checksummed JSON document ({error})") from error
    if content_digest(content) != digest:
        raise CorruptFileError(path, "its content does not match its checksum")
    return content
