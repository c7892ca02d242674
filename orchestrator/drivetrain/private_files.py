"""Files with secrets, readable only by their owner from their creation on."""

from __future__ import annotations

import os
from pathlib import Path

from drivetrain_pipelines.errors import InputError


def write_private(path: Path, text: str) -> None:
    """Write or replace a file that only its owner can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)


def read_private(path: Path) -> str:
    """Return the text of a file that only its owner can read.

    Raises:
        InputError: other users can read it.
    """
    if path.stat().st_mode & 0o077:
        raise InputError(str(path), "a file that other users can read", "a file with mode 0600", f"chmod 600 {path}")
    return path.read_text().strip()
