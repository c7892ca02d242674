"""Digests of bytes, files and JSON values. Blocks of 8 MiB have xxh3-64 checksums."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import xxhash

from drivetrain_pipelines.errors import CorruptFileError

BLOCK_BYTES = 8 << 20


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
