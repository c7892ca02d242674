"""Connections to SQLite and PostgreSQL, with migration to this version's tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from drivetrain_pipelines.errors import InputError
from filelock import FileLock
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.pool import NullPool

READS = "drivetrain_reads"  # execution option for read-only transactions, which do not block writers
_LOCK_KEY = 0x6472697665  # key of PostgreSQL's advisory lock: "drive"


def open_database(url: str) -> Engine:
    """Open a database and migrate it to this version's tables.

    Args:
        url: SQLAlchemy URL; ``postgresql://`` selects psycopg 3.

    Raises:
        InputError: the database is not reachable, or a newer version has migrated it.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise InputError("database URL", repr(url), "sqlite:///FILE or postgresql://USER@HOST/NAME") from error
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    # Transactions are rare and short. A new connection for each leaves none open across server restarts and forks.
    engine = create_engine(parsed, poolclass=NullPool)
    if engine.dialect.name == "sqlite":
        _configure_sqlite(engine)
    try:
        _migrate(engine)
    except OperationalError as error:
        shown = parsed.render_as_string(hide_password=True)
        raise InputError("database URL", shown, "a reachable database", str(error.orig).strip()) from error
    return engine


def _migrate(engine: Engine) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    scripts = ScriptDirectory.from_config(config)
    with engine.connect() as connection:
        if _revision(connection) == scripts.get_current_head():
            return
    with _exclusive(engine) as connection:
        at = _revision(connection)
        if at is not None and at not in {script.revision for script in scripts.walk_revisions()}:
            fix = "Install the version of Drivetrain that created the database, or a newer one."
            raise InputError("database", f"tables of version {at}", f"up to {scripts.get_current_head()}", fix)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


@contextmanager
def _exclusive(engine: Engine) -> Iterator[Connection]:
    """Open a transaction in which no other process can migrate."""
    if engine.dialect.name != "sqlite":
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
            yield connection
        return
    # SQLite's batch migrations may need several transactions, so a lock file is necessary.
    with FileLock(f"{engine.url.database}.migrating"), engine.begin() as connection:
        yield connection


def _configure_sqlite(engine: Engine) -> None:
    """Configure WAL, synchronous writes, and transactions that take the lock at their start."""

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # disables the implicit transactions of Python's driver
        cursor = connection.cursor()
        cursor.execute("PRAGMA busy_timeout=30000")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        reads = connection.get_execution_options().get(READS)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
