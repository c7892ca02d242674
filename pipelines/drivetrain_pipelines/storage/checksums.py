"""Block checksums (xxh3-64 over 8 MiB blocks) and atomic writes of files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from drivetrain_pipelines.errors import CorruptFileError

BLOCK_BYTES = 8 << 20

JsonObject = dict[str, Any]  # a JSON object


def block_digests(data: memoryview | bytes) -> list[str]:
    """Return the xxh3-64 hex digest of every 8 MiB block of ``data``, in order."""
    view = memoryview(data)
    return [xxhash.xxh3_64_hexdigest(view[i : i + BLOCK_BYTES]) for i in range(0, len(view), BLOCK_BYTES)]


def file_digests(path: Path) -> list[str]:
    """Return the `block_digests` of a file, reading one block at a time."""
    with path.open("rb", buffering=0) as file:
        return [xxhash.xxh3_64_hexdigest(block) for block in iter(lambda: file.read(BLOCK_BYTES), b"")]


def verify_bytes(path: str, data: memoryview, digests: list[str]) -> None:
    """Compare bytes with the digests of their blocks.

    Raises:
        CorruptFileError: names ``path`` and the first block that differs.
    """
    for block, (actual, expected) in enumerate(zip(block_digests(data), digests, strict=True)):
        if actual != expected:
            raise CorruptFileError(path, f"block {block} (8 MiB each) has checksum {actual}, not {expected}")


def verify_file(path: Path, size: int, digests: list[str]) -> None:
    """Compare a file with its recorded size and digests.

    Raises:
        CorruptFileError: the file is missing, has another size, or a block differs; names file and block.
    """
    if not path.is_file():
        raise CorruptFileError(str(path), "the file is missing")
    actual_size = path.stat().st_size
    if actual_size != size:
        raise CorruptFileError(str(path), f"it has {actual_size} bytes instead of {size}")
    for block, (actual, expected) in enumerate(zip(file_digests(path), digests, strict=True)):
        if actual != expected:
            raise CorruptFileError(str(path), f"block {block} (8 MiB each) has checksum {actual}, not {expected}")


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


def tree_digest(path: Path) -> str:
    """Return a digest of a file's bytes and name, or of all files in a folder."""
    digest = hashlib.sha256()
    for file in sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]:
        digest.update(file.relative_to(path.parent).as_posix().encode() + b"\0")
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:16]


def content_digest(content: Any) -> str:
    """Return the xxh3-64 hex digest of any JSON value; the order of keys has no effect."""
    return xxhash.xxh3_64_hexdigest(json.dumps(content, sort_keys=True).encode())
