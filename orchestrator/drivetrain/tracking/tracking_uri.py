"""Properties of MLflow's tracking URI."""

from __future__ import annotations

from urllib.parse import urlsplit


def is_server(uri: str) -> bool:
    """Check whether the URI refers to a server, not to a database or a folder."""
    return urlsplit(uri).scheme in ("http", "https")


def without_credentials(uri: str) -> str:
    """Return the URI without user name and password."""
    parts = urlsplit(uri)
    _, found, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"***@{host}").geturl() if found else uri
