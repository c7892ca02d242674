"""Properties of MLflow's tracking URI."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit


def is_server(uri: str) -> bool:
    """Check whether the URI refers to a server, not to a database or a folder."""
    return urlsplit(uri).scheme in ("http", "https")


def embedded_database(uri: str) -> Path | None:
    """Return the file of the SQLite database that the URI refers to; None for other URIs."""
    if urlsplit(uri).scheme.partition("+")[0] != "sqlite":
        return None
    from sqlalchemy import make_url  # here: slow to import, and clients of a server do not need it

    database = make_url(uri).database
    return Path(database) if database else None


def without_credentials(uri: str) -> str:
    """Return the URI without user name and password."""
    parts = urlsplit(uri)
    _, found, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"***@{host}").geturl() if found else uri
