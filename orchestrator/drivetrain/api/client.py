"""A client of a Drivetrain server: needs nothing but its URL and a token."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.storage.checksums import JsonObject
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from drivetrain.errors import NotFoundError, ServerError
from drivetrain.home import Home
from drivetrain.job import bundle
from drivetrain.job.loading import find_job_file
from drivetrain.job.provenance import GitState
from drivetrain.private_files import read_private

DEFAULT_SERVER = "http://127.0.0.1:8900"
_TIMEOUT = httpx.Timeout(60.0, connect=10.0)
_RETRY_S = 60.0  # a server that is being restarted is back within that
_POLL_S = 10.0
_PAGE = 100  # runs of one request, where all are wanted


class _BusyError(Exception):
    """Worth another try."""


class Client:
    """Submits jobs and follows runs over HTTP. Use as a context manager, or call `close`.

    Args:
        server: URL; ``DRIVETRAIN_SERVER`` or this machine's by default.
        token: ``DRIVETRAIN_TOKEN``, or the file ``token`` in Drivetrain's home, by default.

    Raises:
        InputError: there is no token.
    """

    def __init__(self, server: str | None = None, token: str | None = None) -> None:
        self.server = (server or os.environ.get("DRIVETRAIN_SERVER") or DEFAULT_SERVER).rstrip("/")
        if not self.server.startswith(("http://", "https://")):
            raise InputError("--server", repr(self.server), "a URL that begins with http:// or https://")
        secret = token or _token()
        if not (secret.isascii() and secret.isprintable()):
            raise InputError("token", "characters that no token has", "a token, as `drivetrain token create` prints it")
        headers, trusted = {"Authorization": f"Bearer {secret}"}, os.environ.get("DRIVETRAIN_CA_FILE")
        try:
            verify: Any = ssl.create_default_context(cafile=trusted) if trusted else True
            self._http = httpx.Client(base_url=f"{self.server}/v1", headers=headers, timeout=_TIMEOUT, verify=verify)
        except httpx.InvalidURL as error:
            raise InputError("--server", repr(self.server), "a URL", str(error)) from error
        except OSError as error:
            raise InputError("DRIVETRAIN_CA_FILE", repr(trusted), "a PEM file of certificates", str(error)) from error

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of connections."""
        self._http.close()

    def submit(self, job: str, overrides: Iterable[str] = (), idempotency_key: str | None = None) -> JsonObject:
        """Send a job's folder and begin a run; returns the run.

        Args:
            job: job file, folder with one, or recipe name; read on this machine.
            overrides: ``section.key=value``.
            idempotency_key: the same one twice makes one run. Without, one is made up, so that a request that is
                sent again because its answer was lost does not make two.
        """
        file = find_job_file(job)
        digest, content = bundle.pack(file.parent)
        if not self._json("GET", f"/packages/{digest}")["there"]:
            self._json("PUT", f"/packages/{digest}", content=content)
        body = {
            "package": digest,
            "job_file": file.name,
            "overrides": list(overrides),
            "git": asdict(GitState.of(file.parent)),
            "idempotency_key": idempotency_key or f"once-{os.urandom(16).hex()}",
        }
        return self._json("POST", "/runs", json=body)  # type: ignore[no-any-return]

    def runs(
        self, user: str | None = None, phase: str | None = None, limit: int = 50, before: str | None = None
    ) -> list[JsonObject]:
        """Return at most ``limit`` (up to 1000) runs, newest first.

        Args:
            user, phase: only those of this user, in this phase.
            before: id of the last run of the page before this one; None begins with the newest run.
        """
        filters = {key: value for key, value in (("user", user), ("phase", phase), ("before", before)) if value}
        return self._json("GET", "/runs", params={**filters, "limit": limit})  # type: ignore[no-any-return]

    def all_runs(self, user: str | None = None, phase: str | None = None) -> Iterator[JsonObject]:
        """Yield every run, newest first, asking for a page at a time. Args: see `runs`."""
        before: str | None = None
        while page := self.runs(user, phase, _PAGE, before):
            yield from page
            before = page[-1]["run_id"]

    def status(self, run_id: str) -> JsonObject:
        """A run: record, live figures (``view``), history."""
        return self._json("GET", f"/runs/{run_id}")  # type: ignore[no-any-return]

    def account(self, run_id: str) -> JsonObject:
        """Where the time of a run has gone (``seconds`` by class), and what it has cost."""
        return self._json("GET", f"/runs/{run_id}/account")  # type: ignore[no-any-return]

    def watch(self, run_id: str) -> Iterator[JsonObject]:
        """Views of a run, each newer than the one before, until it has ended."""
        version = -1
        while True:
            view = self._json("GET", f"/runs/{run_id}/view", params={"known_version": version, "timeout_s": _POLL_S})
            if view["version"] != version:  # also a lower one, after a restart of the coordinator
                version = view["version"]
                yield view
            if view["phase"] == "ended" and view["facts"].get("released"):
                return

    def wait(self, run_id: str, timeout_s: float | None = None) -> JsonObject:
        """Wait until a run has ended; returns it.

        Raises:
            TimeoutError: it has not, by then.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        version = -1
        while True:
            left = _POLL_S if deadline is None else min(_POLL_S, deadline - time.monotonic())
            if left <= 0:
                raise TimeoutError(f"{run_id} has not ended within {timeout_s} s")
            view = self._json("GET", f"/runs/{run_id}/view", params={"known_version": version, "timeout_s": left})
            version = view["version"]
            if view["phase"] == "ended" and view["facts"].get("released"):
                return self.status(run_id)

    def logs(self, run_id: str, rank: int | None = None, follow: bool = False) -> Iterator[str]:
        """Lines that the ranks have printed; with ``follow`` until the run has ended."""
        wanted: JsonObject = {"follow": follow} | ({} if rank is None else {"rank": rank})
        try:
            with self._http.stream("GET", f"/runs/{run_id}/logs", params=wanted, timeout=None) as response:
                if response.is_error:
                    response.read()
                    _raise(response)
                yield from response.iter_lines()
        except httpx.TransportError as error:
            raise ServerError(0, f"the connection to {self.server} broke: {error}") from error

    def cancel(self, run_id: str) -> JsonObject:
        """Have a run save and end."""
        return self._json("POST", f"/runs/{run_id}/cancel")  # type: ignore[no-any-return]

    def resume(self, run_id: str) -> JsonObject:
        """Go on with a run that was cancelled or has failed."""
        return self._json("POST", f"/runs/{run_id}/resume")  # type: ignore[no-any-return]

    def retry(self, run_id: str) -> JsonObject:
        """Begin a new run of the same job."""
        return self._json("POST", f"/runs/{run_id}/retry")  # type: ignore[no-any-return]

    def queue(self) -> list[JsonObject]:
        """Who waits, the next first, and why."""
        return self._json("GET", "/queue")  # type: ignore[no-any-return]

    def nodes(self) -> list[JsonObject]:
        """The cluster's nodes, and the ranks on them."""
        return self._json("GET", "/nodes")  # type: ignore[no-any-return]

    def me(self) -> JsonObject:
        """Whose token this is, and its role."""
        return self._json("GET", "/me")  # type: ignore[no-any-return]

    def _json(self, method: str, path: str, **request: Any) -> Any:
        """One request, tried again while the server is away or busy. All but `retry` may be sent twice."""
        lost = httpx.ConnectError if path.endswith("/retry") else httpx.TransportError
        again = retry_if_exception_type((lost, _BusyError))
        try:
            for attempt in Retrying(
                retry=again, wait=wait_random_exponential(0.2, 5), stop=stop_after_delay(_RETRY_S), reraise=True
            ):
                with attempt:
                    response = self._http.request(method, path, **request)
                    if response.status_code in (429, 502, 503, 504):
                        raise _BusyError(response.status_code, response.text)
        except httpx.TransportError as error:
            raise ServerError(0, f"no Drivetrain server answers at {self.server}: {error}") from error
        except _BusyError as error:
            raise ServerError(error.args[0], f"{self.server} is too busy: {error.args[1]}") from error
        if response.is_error:
            _raise(response)
        return response.json() if response.content else None


def _raise(response: httpx.Response) -> None:
    try:
        body = response.json()
    except ValueError:
        body = {}
    if "missing" in body:
        raise NotFoundError.from_json(body["missing"])
    if "input" in body:
        raise InputError(**body["input"])
    detail = body.get("detail", response.text)
    raise ServerError(response.status_code, detail if isinstance(detail, str) else str(detail))


def _token() -> str:
    if token := os.environ.get("DRIVETRAIN_TOKEN"):
        return token
    file = Home.from_environment().token_file
    if not file.exists():
        fix = (
            f"This verb asks a server. Ask whoever runs it for a token and put it there, with mode 0600: {file}; "
            "or start one here: `drivetrain server`."
        )
        raise InputError("token", "none", "DRIVETRAIN_TOKEN, or a file that holds it", fix)
    return read_private(Path(file))
