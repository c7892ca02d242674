"""What the address of a tracking server (MLflow's tracking URI) says."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit


def is_server(uri: str) -> bool:
    """Whether a server answers there, rather than a database or a folder of this machine."""
    return urlsplit(uri).scheme in ("http", "https")


def embedded_database(uri: str) -> Path | None:
    """Return the file of the SQLite database that the address names; None where it names something else."""
    if urlsplit(uri).scheme.partition("+")[0] != "sqlite":
        return None
    from sqlalchemy import make_url  # here: clients of a server need no SQLAlchemy, which takes time to import

    database = make_url(uri).database
    return Path(database) if database else None


def without_credentials(uri: str) -> str:
    """Return the address without the user and the password that it may hold."""
    parts = urlsplit(uri)
    _, found, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"***@{host}").geturl() if found else uri
