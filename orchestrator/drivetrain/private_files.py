"""Files that hold secrets: readable by their owner alone, from the first moment on."""

from __future__ import annotations

import os
from pathlib import Path

from drivetrain_pipelines.errors import InputError


def write_private(path: Path, text: str) -> None:
    """Write a file that nobody else may read; what was there is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)


def read_private(path: Path) -> str:
    """The text of a file that nobody else may read.

    Raises:
        InputError: others may.
    """
    if path.stat().st_mode & 0o077:
        raise InputError(str(path), "a file that others may read", "one of mode 0600", f"chmod 600 {path}")
    return path.read_text().strip()
