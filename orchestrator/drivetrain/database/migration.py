"""Migration of a database to this version's tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from drivetrain_pipelines.errors import InputError
from filelock import FileLock
from sqlalchemy import Connection, Engine, text

from drivetrain.database.files import file_of

_LOCK_TIMEOUT_S = 120.0  # for another process that migrates
_LOCK_KEY = 0x6472697665  # key of PostgreSQL's advisory lock: "drive"


def migrate(engine: Engine) -> None:
    """Bring the tables to the newest revision, in one process at a time.

    Raises:
        InputError: a newer version has migrated the database.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    with _exclusive(engine) as connection:
        at = MigrationContext.configure(connection).get_current_revision()
        if at is not None and at not in {script.revision for script in scripts.walk_revisions()}:
            fix = "Install the version of Drivetrain that created the database, or a newer one."
            raise InputError("database", f"tables of version {at}", f"up to {scripts.get_current_head()}", fix)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


@contextmanager
def _exclusive(engine: Engine) -> Iterator[Connection]:
    """Open a transaction in which no other process can migrate."""
    if engine.dialect.name != "sqlite":
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
            yield connection
        return
    # SQLite's batch migrations may need several transactions, so a lock file is necessary.
    with FileLock(f"{file_of(engine)}.migrating", timeout=_LOCK_TIMEOUT_S), engine.begin() as connection:
        yield connection
