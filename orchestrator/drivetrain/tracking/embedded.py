"""MLflow's SQLite database in the home folder, for those who run no tracking server."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore


def make_database(path: Path, artifacts: Path) -> None:
    """Make the database, whole or not at all: MLflow does not go on with one whose maker was killed half-way.

    Args:
        path: nothing happens where it is there.
        artifacts: root of the default experiment's.
    """
    if path.exists():
        return
    with FileLock(path.with_suffix(".making")):
        if path.exists():
            return
        fresh = path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        store = SqlAlchemyStore(f"sqlite:///{fresh}", artifacts.as_uri())  # type: ignore[no-untyped-call]  # MLflow's
        store.engine.dispose()
        fresh.rename(path)
