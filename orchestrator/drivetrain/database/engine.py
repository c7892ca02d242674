"""Opening a database: SQLite or PostgreSQL, brought up to this version's tables."""

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

READS = "drivetrain_reads"  # execution option: the transaction writes nothing, and need not keep others from writing
_LOCK_KEY = 0x6472697665  # of PostgreSQL's advisory lock: "drive"


def open_database(url: str) -> Engine:
    """An engine whose database has this version's tables.

    Args:
        url: SQLAlchemy URL; ``postgresql://`` means psycopg 3.

    Raises:
        InputError: it cannot be reached, or was made by a newer version.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise InputError("database URL", repr(url), "sqlite:///FILE or postgresql://USER@HOST/NAME") from error
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    # Transactions are rare and short: a connection for each leaves none open over a restart of the server, or a fork.
    engine = create_engine(parsed, poolclass=NullPool)
    if engine.dialect.name == "sqlite":
        _configure_sqlite(engine)
    try:
        _migrate(engine)
    except OperationalError as error:
        shown = parsed.render_as_string(hide_password=True)
        raise InputError("database URL", shown, "a database that answers", str(error.orig).strip()) from error
    return engine


def _migrate(engine: Engine) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    scripts = ScriptDirectory.from_config(config)
    with engine.connect() as connection:
        if _revision(connection) == scripts.get_current_head():
            return
    with _alone(engine) as connection:
        at = _revision(connection)
        if at is not None and at not in {script.revision for script in scripts.walk_revisions()}:
            fix = "Install the version of Drivetrain that made it, or a newer one."
            raise InputError("database", f"tables of version {at}", f"up to {scripts.get_current_head()}", fix)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


@contextmanager
def _alone(engine: Engine) -> Iterator[Connection]:
    """A transaction in which no other process migrates."""
    if engine.dialect.name != "sqlite":
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
            yield connection
        return
    # The transaction alone would do, but for SQLite's batch migrations, which may need several.
    with FileLock(f"{engine.url.database}.migrating"), engine.begin() as connection:
        yield connection


def _configure_sqlite(engine: Engine) -> None:
    """WAL and synchronous writes; a transaction locks when it begins, so that what it has read stays true."""

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # or Python's driver would begin, and commit, where it sees fit
        cursor = connection.cursor()
        cursor.execute("PRAGMA busy_timeout=30000")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        reads = connection.get_execution_options().get(READS)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
