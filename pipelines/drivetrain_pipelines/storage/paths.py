"""Paths and URLs: which locations are on this machine, and the one place where a path becomes a URL.

Inside Drivetrain a location is an absolute path, as it is, or a URL of a remote file system. A path is never quoted
and never interpreted: it may contain every character that a file system allows.
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
    return scheme_of(location) in ("", *_LOCAL)


def local_path(location: str) -> str:
    """Return the path that a path or a ``file://`` URL names, without changing what is written in it.

    A URL is unquoted, unless a file of the name as written exists.
    """
    if not scheme_of(location):
        return location
    written = location[location.index("://") + 3 :]
    return written if os.path.lexists(written) else unquote(written, errors="surrogateescape")


def absolute_path(location: str, folder: Path) -> str:
    """Return the absolute path of a path or ``file://`` URL that may be relative to ``folder`` or begin with ``~``.

    A symbolic link at the end keeps its name. What exists is taken as it is, before ``~`` means a home.
    """
    path = local_path(location)
    if path.startswith("~") and not os.path.lexists(folder / path):
        path = os.path.expanduser(path)  # an unknown user stays as written
    joined = folder / path
    if ".." in joined.parts:
        return str(joined.resolve() if joined.name == ".." else joined.parent.resolve() / joined.name)
    return os.path.abspath(joined)  # `resolve` would give a symbolic link the name of its target


def file_url(path: str | Path) -> str:
    """Return the ``file://`` URL of a path, quoted, for libraries that take only URLs."""
    return Path(path).absolute().as_uri()
