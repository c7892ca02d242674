"""MLflow's SQLite database in the home folder, used without a tracking server."""

from __future__ import annotations

from pathlib import Path

from drivetrain_pipelines.storage.paths import sqlite_url
from filelock import FileLock
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

_LOCK_TIMEOUT_S = 120.0  # for another process that makes it


def make_database(path: Path, artifacts: Path) -> None:
    """Create the database atomically: MLflow cannot use a partially created one.

    Args:
        path: of the database; an existing one is not changed.
        artifacts: artifact root of the default experiment.
    """
    if path.exists():
        return
    with FileLock(path.with_suffix(".making"), timeout=_LOCK_TIMEOUT_S):
        if path.exists():
            return
        fresh = path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        store = SqlAlchemyStore(sqlite_url(fresh), artifacts.as_uri())  # type: ignore[no-untyped-call]  # MLflow's
        store.engine.dispose()
        fresh.rename(path)
