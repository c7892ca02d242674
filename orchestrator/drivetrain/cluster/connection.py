"""The connection of a process to a Ray cluster: join one, or start one."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from threading import Timer
from typing import Any

import ray
from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.storage.json_files import atomic_write
from drivetrain_pipelines.storage.proxies import reach_loopback_directly

from drivetrain.cluster import ray_internals
from drivetrain.cluster.addresses import NEW, find_cluster, is_loopback, recorded
from drivetrain.cluster.temporary_folder import temporary_folder
from drivetrain.errors import RayStartError
from drivetrain.home import Home

NAMESPACE = "drivetrain"
_SILENCE_S = 2.0
_TRIES = 2  # Ray gives its processes 15 s, which a busy machine may need to read their code; the next ones find it read


@contextmanager
def connect(address: str | None = None, shared: bool = False) -> Iterator[None]:
    """Join a Ray cluster, or start one that ends with the block.

    Args:
        address: of a cluster, ``auto`` for that of this machine, or ``local`` for a new one. None joins the one that
            ``RAY_ADDRESS`` names, that of a Drivetrain server with this home, or that of `ray start` on this machine;
            where there is none it starts one that listens on loopback. Ray asks everyone who connects for the token
            in ``~/.ray/auth_token``.
        shared: whether other commands with this home join the cluster while this block runs.

    Raises:
        InputError: no Ray cluster answers at the address, or it does not accept this process.
        RayStartError: Ray does not start on this machine.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's default of 15 gives every other process priority
    reach_loopback_directly()
    _check_current_folder()
    home = Home.from_environment()
    with home.ray_messages.open("a") as messages, ray_internals.messages_to(messages):
        join = find_cluster(address, home.ray_address)
        with _announced(f"joining Ray at {join}…" if join else "starting Ray…"):
            if join:
                _join(join)
            else:
                _start()
                _protect_token()
        try:
            with _offered(home.ray_address) if shared else nullcontext():
                yield
        finally:
            ray.shutdown()


def _check_current_folder() -> None:
    """Check that this process's folder exists: Ray's processes start in it."""
    try:
        os.getcwd()
    except OSError as error:
        raise InputError(
            "current folder", "a folder that was deleted or is not accessible", "one that exists"
        ) from error


def _join(address: str) -> None:
    try:
        with ray_internals.only_on_loopback() if is_loopback(address) else nullcontext():
            _initialize(address)
    except (ConnectionError, RuntimeError) as error:
        said = _first_line(error.__cause__ or error)
        fix = "A command that joins a cluster runs on one of its nodes."
        raise InputError(
            "Ray address", f"{address}, which cannot be joined: {said}", "a cluster of this machine", fix
        ) from error


def _start() -> None:
    with ray_internals.only_on_loopback(), temporary_folder():
        for attempt in range(1, _TRIES + 1):
            try:
                _initialize(NEW, include_dashboard=False)
                return
            except ray.exceptions.AuthenticationError as error:
                given = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
                raise InputError("RAY_AUTH_TOKEN_PATH", repr(given), "a file with Ray's token, or unset") from error
            except Exception as error:  # Ray has no class for this
                logs = ray_internals.end_failed_start(error)
                ray.shutdown()
                if attempt == _TRIES:
                    raise RayStartError(_first_line(error), attempt, str(logs or "")) from error
                print(f"Ray did not start ({_first_line(error)}); trying again…", file=sys.stderr)


def _initialize(address: str, **settings: Any) -> None:
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, namespace=NAMESPACE, **settings)


@contextmanager
def _announced(what: str) -> Iterator[None]:
    """Print on stderr what takes so long, after some seconds."""
    timer = Timer(_SILENCE_S, lambda: print(what, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _offered(file: Path) -> Iterator[None]:
    """Record the address of the cluster of this process, for the other commands with this home."""
    address = str(ray.get_runtime_context().gcs_address)
    with atomic_write(file) as sink:
        sink.write(address.encode())
    try:
        yield
    finally:
        if recorded(file) == address:
            with suppress(OSError):
                file.unlink()


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.partition("\n")[0].partition(". ")[0].rstrip(".")


def _protect_token() -> None:
    """Make the token of Ray private: Ray creates it readable by every user of the machine."""
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    if token.exists():
        token.chmod(0o600)
