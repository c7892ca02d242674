"""Properties of tracking URIs."""

from __future__ import annotations

from pathlib import Path

import pytest
from drivetrain.tracking.tracking_uri import is_server, without_credentials
from drivetrain_pipelines.storage.paths import sqlite_file


@pytest.mark.parametrize(
    ("uri", "server", "database", "shown"),
    [
        ("http://127.0.0.1:5000", True, None, "http://127.0.0.1:5000"),
        ("HTTPS://ann:se@cret@mlflow.example/path", True, None, "https://***@mlflow.example/path"),
        ("httpx://host", False, None, "httpx://host"),
        ("sqlite:////home/ann/mlflow.db", False, Path("/home/ann/mlflow.db"), "sqlite:////home/ann/mlflow.db"),
        ("sqlite+pysqlite:///mlflow.db", False, Path("mlflow.db"), "sqlite+pysqlite:///mlflow.db"),
        ("sqlite://", False, None, "sqlite://"),
        ("postgresql://ann:secret@host/mlflow", False, None, "postgresql://***@host/mlflow"),
        ("/srv/mlruns", False, None, "/srv/mlruns"),
        ("mlruns", False, None, "mlruns"),
        ("databricks", False, None, "databricks"),
    ],
)
def test_addresses(uri: str, server: bool, database: Path | None, shown: str) -> None:
    assert (is_server(uri), sqlite_file(uri), without_credentials(uri)) == (server, database, shown)
