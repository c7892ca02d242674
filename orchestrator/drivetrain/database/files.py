"""The file of a SQLite database."""

from __future__ import annotations

from pathlib import Path

from drivetrain_pipelines.storage.paths import sqlite_file
from sqlalchemy import Engine


def file_of(engine: Engine) -> Path | None:
    """Return the file of a database; None for PostgreSQL and in memory."""
    return sqlite_file(engine.url.render_as_string())
