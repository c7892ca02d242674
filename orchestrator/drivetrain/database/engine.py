"""Connections to SQLite and PostgreSQL, with migration to this version's tables."""

from __future__ import annotations

from typing import Any

from drivetrain_pipelines.errors import InputError
from filelock import FileLock
from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.pool import NullPool

from drivetrain.database.files import file_of

READS = "drivetrain_reads"  # execution option for read-only transactions, which do not block writers
TABLES_REVISION = "0003"  # of the newest migration
_VERSION_TABLE = "alembic_version"
_BUSY_TIMEOUT_S = 30  # for other processes; they hold a lock for milliseconds


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
    except (OperationalError, OSError) as error:  # OSError: of a lock file
        shown = parsed.render_as_string(hide_password=True)
        problem = error.orig if isinstance(error, OperationalError) else error
        raise InputError("database URL", shown, "a reachable database", str(problem).strip()) from error
    return engine


def _migrate(engine: Engine) -> None:
    with engine.connect() as connection:
        if _revision(connection) == TABLES_REVISION:
            return
    from drivetrain.database.migration import migrate  # here: Alembic takes 0.3 s to import and is rarely needed

    migrate(engine)


def _revision(connection: Connection) -> str | None:
    """Return the revision of the tables as Alembic has recorded it."""
    if not inspect(connection).has_table(_VERSION_TABLE):
        return None
    query = text(f"SELECT version_num FROM {_VERSION_TABLE}")  # noqa: S608  # a constant
    return connection.execute(query).scalar()


def _configure_sqlite(engine: Engine) -> None:
    """Configure WAL, synchronous writes, and transactions that take the lock at their start."""

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # disables the implicit transactions of Python's driver
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={round(_BUSY_TIMEOUT_S * 1000)}")
        if cursor.execute("PRAGMA journal_mode").fetchone() == ("delete",):  # a new file
            # SQLite's timeout does not cover the change of mode.
            with FileLock(f"{file_of(engine)}.opening", timeout=_BUSY_TIMEOUT_S):
                cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        reads = connection.get_execution_options().get(READS)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
