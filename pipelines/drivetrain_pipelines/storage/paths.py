"""Paths and URLs: which text is a path of this machine, and the URLs of paths. A path can have any characters.

What exists is taken as it is: ``?``, ``%``, ``#``, ``*``, ``[`` and ``::`` in a path have no meaning.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote

_FILE = "file://"


def is_local(location: str) -> bool:
    """Check whether a path or URL is on a file system of this machine."""
    return (
        os.path.isabs(location)
        or location.startswith((_FILE, "~"))
        or "://" not in location
        or os.path.lexists(location)
    )


def local_path(location: str) -> Path:
    """Return the path of a local path or ``file://`` URL. A URL may have escapes, unless the path exists without."""
    if not location.startswith(_FILE):
        return Path(location)
    path = location.removeprefix(_FILE)
    if path.startswith("localhost/"):
        path = path.removeprefix("localhost")
    return Path(path if os.path.lexists(path) else unquote(path))


def sqlite_url(path: Path) -> str:
    """Return the URL of a SQLite database for SQLAlchemy and MLflow.

    With escapes it names the driver: for plain ``sqlite:`` MLflow creates the folder of the path without decoding it.
    """
    escaped = str(path).replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{escaped}" if escaped == str(path) else f"sqlite+pysqlite:///{escaped}"


def sqlite_file(url: str) -> Path | None:
    """Return the file of a SQLite database, given its URL for SQLAlchemy; None for other URLs."""
    scheme, found, rest = url.partition(":///")
    if not found or scheme.partition("+")[0] != "sqlite":
        return None
    name = unquote(rest.partition("?")[0])
    return Path(name) if name and name != ":memory:" else None
