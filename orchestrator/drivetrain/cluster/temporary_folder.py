"""The folder of Ray's temporary files: one in which its sockets can be made."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from drivetrain_pipelines.errors import InputError

_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"  # the longest name that Ray appends
_MAX_SOCKET_BYTES = 107  # of a Unix socket's path, on Linux
_VARIABLES = ("RAY_TMPDIR", "TMPDIR")  # Ray's order
_OTHERS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108  # where Ray makes its own folder


def problem_of(folder: str) -> str:
    """Return why Ray cannot keep its files in a folder; empty if it can."""
    if not folder.isascii():
        return "its path has characters other than ASCII"
    if not os.path.isabs(folder):
        return "its path is relative"
    if (needed := len(folder) + len(_SOCKET)) > _MAX_SOCKET_BYTES:
        return f"the path of a socket in it would have {needed} bytes, and {_MAX_SOCKET_BYTES} are allowed"
    if not (os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)):
        return "it is not a folder in which this user can write"
    return ""


def find_folder() -> str:
    """Return the folder for Ray's files: that of ``RAY_TMPDIR`` or ``TMPDIR``, or a short one, with a note on stderr.

    Raises:
        InputError: there is none.
    """
    given = [folder for name in _VARIABLES if (folder := os.environ.get(name))][:1]
    problems = {folder: problem_of(folder) for folder in (*given, *_OTHERS)}
    usable = [folder for folder, problem in problems.items() if not problem]
    if not usable:
        said = "; ".join(f"{folder}: {problem}" for folder, problem in problems.items())
        raise InputError("TMPDIR", said, "a folder with a short path in which this user can write")
    if given and usable[0] != given[0]:
        print(f"Ray's files are in {usable[0]}, not in {given[0]}: {problems[given[0]]}", file=sys.stderr)
    return usable[0]


@contextmanager
def temporary_folder() -> Iterator[None]:
    """Start processes of Ray in this block with a folder in which their sockets can be made."""
    before = {name: os.environ.get(name) for name in _VARIABLES}
    os.environ |= dict.fromkeys(_VARIABLES, find_folder())
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
