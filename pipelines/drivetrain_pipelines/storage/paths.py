"""Paths and URLs: which text is a path of this machine, and the URLs of paths. A path can have any characters.

What exists is taken as it is: ``?``, ``%``, ``#``, ``*``, ``[`` and ``::`` in a path have no meaning.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://", re.ASCII)
_LOCAL = ("file", "local")  # schemes of fsspec for this machine


def scheme_of(location: str) -> str:
    """Return the scheme of a URL in lower case; empty for a path."""
    found = _SCHEME.match(location)
    return found[1].lower() if found else ""


def is_local(location: str) -> bool:
    """Check whether a path or URL is on a file system of this machine."""
    return scheme_of(location) in ("", *_LOCAL) or os.path.lexists(location)


def local_path(location: str) -> Path:
    """Return the path of a local path or ``file://`` URL. A URL may have escapes, unless the path exists without."""
    if scheme_of(location) not in _LOCAL:
        return Path(location)
    path = location[location.index("://") + 3 :]
    if path.startswith("localhost/"):
        path = path.removeprefix("localhost")
    return Path(path if os.path.lexists(path) else unquote(path, errors="surrogateescape"))


def absolute_path(location: str, folder: Path) -> str:
    """Return the absolute path of a path or ``file://`` URL that may be relative to ``folder`` or begin with ``~``.

    A symbolic link keeps its name, because the name of a file shows its format. ``~`` is a home, unless it exists.
    """
    path = local_path(location)
    if str(path).startswith("~") and not os.path.lexists(folder / path):
        path = Path(os.path.expanduser(path))  # an unknown user stays as written
    joined = folder / path
    if ".." in joined.parts:
        return str(joined.resolve() if joined.name == ".." else joined.parent.resolve() / joined.name)
    return os.path.abspath(joined)


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
