"""A PostgreSQL server on loopback, from Debian's packages, for the duration of a test."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from uuid import uuid4

import pytest

from tests.packages import INSTALL


class Postgres:
    """The server, as a context manager."""

    def __init__(self) -> None:
        self._bin = _binaries()
        self._folder = Path(tempfile.mkdtemp(prefix="drivetrain-postgres-"))
        self._data = self._folder / "data"
        # The server refuses to run as root.
        self._user = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
        if self._user:
            account = pwd.getpwnam("postgres")
            os.chown(self._folder, account.pw_uid, account.pw_gid)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]

    def __enter__(self) -> Postgres:
        self._run("initdb", "--pgdata", self._data, "--username", "drivetrain", "--auth", "trust", "--no-sync")
        self._control("start")
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._control("stop", "--mode", "immediate")
        shutil.rmtree(self._folder)

    def new_database(self) -> str:
        """Return the URL of an empty database."""
        name = f"test_{uuid4().hex[:8]}"
        address = ("--host", "127.0.0.1", "--port", str(self._port), "--username", "drivetrain")
        self._run("createdb", *address, name)
        return f"postgresql://drivetrain@127.0.0.1:{self._port}/{name}"

    def restart(self) -> None:
        """Cut every connection."""
        self._control("restart", "--mode", "fast")

    def _control(self, *what: str) -> None:
        options = f"-h 127.0.0.1 -p {self._port} -c unix_socket_directories='' -c fsync=off"
        self._run("pg_ctl", "--pgdata", self._data, "--log", self._folder / "log", "-o", options, "--wait", *what)

    def _run(self, program: str, *arguments: str | Path) -> None:
        command: Sequence[str | Path] = [self._bin / program, *arguments]
        # The server inherits the output; with a pipe, this call would wait for the end of the server.
        with (self._folder / "output").open("ab") as output:
            subprocess.run(command, check=True, stdout=output, stderr=output, cwd="/", **self._user)  # type: ignore[call-overload]


def _binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip(f"no PostgreSQL server here: {INSTALL}")
    return found[-1].parent
