"""Checks of the tracking server, the Drivetrain server and their ports."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import Any

import httpx
import psutil
from drivetrain_pipelines.storage.paths import sqlite_file
from drivetrain_pipelines.storage.proxies import is_loopback

from drivetrain.api.client import DEFAULT_SERVER, Client
from drivetrain.doctor.finding import Finding, failed, ok, run_check, warning
from drivetrain.home import Home
from drivetrain.tracking.tracking_uri import is_server, without_credentials

_PORTS = {8900: "drivetrain server", 6379: "Ray"}
_TIMEOUT_S = 10.0


def examine(home: Home) -> list[Finding]:
    """Run all checks of services."""
    return [
        run_check(
            "tracker", lambda: _tracker(home.mlflow_uri), "Check MLFLOW_TRACKING_URI, the user name and the password."
        ),
        _token_file(home.token_file),
        run_check("server", _server, "Check DRIVETRAIN_SERVER and the token; `drivetrain server` starts one."),
        _ports(),
    ]


def _tracker(uri: str) -> Finding:
    shown = without_credentials(uri)
    if is_server(uri):
        credentials = (os.environ.get("MLFLOW_TRACKING_USERNAME", ""), os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))
        without_proxy: dict[str, Any] = {"trust_env": False} if is_loopback(httpx.URL(uri).host) else {}
        answer = httpx.get(
            f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search",
            params={"max_results": 1},
            auth=credentials if credentials[0] else None,
            timeout=_TIMEOUT_S,
            **without_proxy,
        )
        answer.raise_for_status()
        return ok("tracker", f"{shown} responds in {answer.elapsed.total_seconds() * 1000:.0f} ms")
    if database := sqlite_file(uri):
        folder = database.parent
        if not os.access(folder, os.W_OK):
            return failed("tracker", f"{folder} is not writable", "Give this user write permission.")
    return ok("tracker", f"embedded: {shown}")


def _token_file(path: Path) -> Finding:
    if not path.exists():
        return ok("token file", "none; the first `drivetrain server` creates it")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        return warning("token file", f"other users can read {path} (mode {mode:o})", f"chmod 600 {path}")
    return ok("token file", f"{path}, readable by this user only")


def _server() -> Finding:
    named = os.environ.get("DRIVETRAIN_SERVER")
    address = httpx.URL(named or DEFAULT_SERVER)
    try:  # the client would retry for a minute
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.host, port), _TIMEOUT_S).close()
    except ConnectionRefusedError:
        if named:
            raise
        return ok("server", "none runs here, and DRIVETRAIN_SERVER is not set")
    with Client(named) as client:
        account = client.me()
        return ok("server", f"{client.server} accepts this token: {account['user']}, {account['role']}")


def _ports() -> Finding:
    taken = {port: name for port, name in _PORTS.items() if _listens(port)}
    shown = ", ".join(f"{port} ({name}) is {'in use' if port in taken else 'free'}" for port, name in _PORTS.items())
    return ok("ports", shown)


def _listens(port: int) -> bool:
    return any(
        connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN
        for connection in psutil.net_connections("tcp")
    )
