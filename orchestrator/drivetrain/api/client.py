"""The runs of a Drivetrain server, over HTTP. It needs the server's URL and a token."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.storage.json_files import JsonObject
from drivetrain_pipelines.storage.proxies import is_loopback

from drivetrain.api.given_inputs import expand
from drivetrain.api.interface import Comparison, RunInfo, Runs
from drivetrain.api.predictions import Input, check_size
from drivetrain.api.transport import error_of, send
from drivetrain.errors import AnswerLostError, ServerError
from drivetrain.home import Home
from drivetrain.job import bundle
from drivetrain.job.code_files import read_code
from drivetrain.job.loading import check_code_to_send, find_job_file, names_of_data, names_of_outputs, read_document
from drivetrain.job.provenance import GitState
from drivetrain.private_files import read_private
from drivetrain.runs.view import RunView

DEFAULT_SERVER = "http://127.0.0.1:8900"
_TIMEOUT = httpx.Timeout(60.0, connect=10.0)
_POLL_S = 10.0
_ANSWER_S = 60.0  # beyond the timeout that a request names
_WORK_S = 400.0  # of requests that compute something: more than the server's own deadline


class Client(Runs):
    """The runs of a server, over HTTP; and the server's queue and nodes.

    Args:
        server: URL; by default ``DRIVETRAIN_SERVER``, or a server on this machine.
        token: by default ``DRIVETRAIN_TOKEN``, or the file ``token`` in Drivetrain's home.

    Raises:
        InputError: there is no token, or the URL is not one.
    """

    def __init__(self, server: str | None = None, token: str | None = None) -> None:
        self.server = (server or os.environ.get("DRIVETRAIN_SERVER") or DEFAULT_SERVER).rstrip("/")
        if not self.server.startswith(("http://", "https://")):
            raise InputError("--server", repr(self.server), "a URL that begins with http:// or https://")
        secret = token or _token()
        if not (secret.isascii() and secret.isprintable()):
            raise InputError("token", "characters that no token has", "a token, as `drivetrain token create` prints it")
        self._http = _connection(self.server, {"Authorization": f"Bearer {secret}"})

    @property
    def where(self) -> str:
        """``server``, and its URL."""
        return f"server {self.server}"

    def close(self) -> None:
        """Close connections."""
        self._http.close()

    def submit(self, job: str, overrides: Iterable[str] = (), idempotency_key: str | None = None) -> RunInfo:
        """Send the job's folder and start a run. See `Runs.submit`.

        Without a key one is made up, so that a request that is sent again because its answer was lost makes one run.

        Raises:
            ServerError: the server refuses the job, or no answer arrived. Then the message says whether the server may
                have accepted the job, and with which key to submit it again.
        """
        file, overrides = find_job_file(job), [*overrides]
        _, document = read_document(file, overrides)
        named = names_of_data(document), names_of_outputs(document)
        check_code_to_send(document, read_code(file.parent, chain(*named)))
        digest, content = bundle.pack(file.parent, file.name, *named)
        if not self._json("GET", f"/packages/{digest}")["there"]:
            self._json("PUT", f"/packages/{digest}", content=content)
        key = idempotency_key or f"once-{os.urandom(16).hex()}"
        body = {
            "package": digest,
            "job_file": file.name,
            "overrides": overrides,
            "git": asdict(GitState.of(file.parent)),
            "idempotency_key": key,
        }
        try:
            return RunInfo.from_json(self._json("POST", "/runs", json=body))
        except AnswerLostError as error:
            fix = (
                f"The job may have been accepted. Submit it again with --idempotency-key {key}: that returns the run, "
                f"or starts it. `drivetrain list --server {self.server}` shows the runs."
            )
            raise AnswerLostError(error.status, f"{error.detail}. {fix}") from error

    def list(
        self, user: str | None = None, phase: str | None = None, limit: int = 50, before: str | None = None
    ) -> tuple[RunInfo, ...]:
        """See `Runs.list`."""
        filters = {key: value for key, value in (("user", user), ("phase", phase), ("before", before)) if value}
        return tuple(map(RunInfo.from_json, self._json("GET", "/runs", params={**filters, "limit": limit})))

    def status(self, run_id: str) -> RunInfo:
        """See `Runs.status`."""
        return RunInfo.from_json(self._json("GET", _path(run_id)))

    def watch(self, run_id: str) -> Iterator[RunView]:
        """See `Runs.watch`."""
        version = -1
        while True:
            view = self._view(run_id, version, _POLL_S)
            if view.version != version:  # also a lower one, after a restart of the coordinator
                version = view.version
                yield view
            if _is_over(view):
                return

    def logs(self, run_id: str, rank: int | None = None, follow: bool = False) -> Iterator[str]:
        """See `Runs.logs`."""
        wanted: JsonObject = {"follow": follow} | ({} if rank is None else {"rank": rank})
        try:
            with self._http.stream("GET", _path(run_id, "/logs"), params=wanted, timeout=None) as response:
                if response.is_error:
                    response.read()
                    raise error_of(self.server, response)
                yield from response.iter_lines()
        except httpx.TransportError as error:
            raise ServerError(0, f"the connection to {self.server} broke: {error}") from error

    def cancel(self, run_id: str) -> RunInfo:
        """See `Runs.cancel`."""
        return RunInfo.from_json(self._json("POST", _path(run_id, "/cancel")))

    def resume(self, run_id: str) -> RunInfo:
        """See `Runs.resume`."""
        return RunInfo.from_json(self._json("POST", _path(run_id, "/resume")))

    def retry(self, run_id: str) -> RunInfo:
        """See `Runs.retry`."""
        return RunInfo.from_json(self._json("POST", _path(run_id, "/retry")))

    def sync(self, run_id: str, timeout_s: float = 600.0) -> None:
        """See `Runs.sync`."""
        wanted = {"timeout_s": timeout_s}
        self._json("POST", _path(run_id, "/sync"), params=wanted, timeout=timeout_s + _ANSWER_S)

    def report(self, run_id: str, to: Path | None = None) -> Path:
        """See `Runs.report`."""
        page = self._request("GET", _path(run_id, "/report"), timeout=_WORK_S).text
        to = to or Path(f"{run_id}-report.html")
        to.write_text(page, "utf-8")
        return to

    def diff(self, first: str, second: str, picture: Path | None = None) -> Comparison:
        """See `Runs.diff`."""
        found = self._json("GET", _path(first, f"/diff/{_quoted(second)}"), timeout=_WORK_S)
        if picture:
            drawn = self._request("GET", _path(first, f"/diff/{_quoted(second)}/losses.png"), timeout=_WORK_S)
            picture.write_bytes(drawn.content)
        return Comparison.from_json(found)

    def predict(
        self,
        run_id: str,
        inputs: Sequence[str],
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        seed: int = 0,
        pictures: str = ".",  # noqa: ARG002  # a server returns no images
    ) -> Sequence[JsonObject]:
        """See `Runs.predict`. Files are uploaded; all inputs together have at most `predictions.MAX_INPUT_BYTES`."""
        sent = [Input.of(given) for given in expand(inputs, None)]
        check_size(sent)
        body = {"inputs": [each.to_json() for each in sent], "seed": seed}
        body |= {"max_tokens": max_tokens, "temperature": temperature}
        return self._json("POST", _path(run_id, "/predict"), json=body, timeout=_WORK_S)  # type: ignore[no-any-return]

    def queue(self) -> Sequence[JsonObject]:
        """Return the queued runs, the next first, each with what it waits for."""
        return self._json("GET", "/queue")  # type: ignore[no-any-return]

    def nodes(self) -> Sequence[JsonObject]:
        """Return the nodes of the cluster, with the ranks on them."""
        return self._json("GET", "/nodes")  # type: ignore[no-any-return]

    def me(self) -> JsonObject:
        """Return the user and the role of this token."""
        return self._json("GET", "/me")  # type: ignore[no-any-return]

    def _view(self, run_id: str, version: int, timeout_s: float) -> RunView:
        wanted = {"known_version": version, "timeout_s": timeout_s}
        return RunView.from_json(self._json("GET", _path(run_id, "/view"), params=wanted))

    def _wait_for_news(self, run_id: str, version: int, timeout_s: float | None) -> tuple[int, bool]:
        view = self._view(run_id, version, _POLL_S if timeout_s is None else min(_POLL_S, timeout_s))
        return view.version, _is_over(view)

    def _json(self, method: str, path: str, **request: Any) -> Any:
        response = self._request(method, path, **request)
        return response.json() if response.content else None

    def _request(self, method: str, path: str, **request: Any) -> httpx.Response:
        return send(self._http, self.server, method, path, **request)


def _connection(server: str, headers: dict[str, str]) -> httpx.Client:
    """Return a client for a server. Raises InputError for its URL, the certificates or a proxy of the environment."""
    trusted = os.environ.get("DRIVETRAIN_CA_FILE")
    try:
        verify: Any = ssl.create_default_context(cafile=trusted) if trusted else True
        url = f"{server}/v1"
        uses_proxy = not is_loopback(httpx.URL(url).host)
        return httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT, verify=verify, trust_env=uses_proxy)
    except httpx.InvalidURL as error:
        raise InputError("--server", repr(server), "a URL", str(error)) from error
    except OSError as error:
        raise InputError("DRIVETRAIN_CA_FILE", repr(trusted), "a PEM file of certificates", str(error)) from error
    except (ImportError, ValueError) as error:  # of httpx, for a proxy
        fix = f"Unset it, or add the server's host to NO_PROXY. {error}"
        raise InputError("HTTP_PROXY, HTTPS_PROXY, ALL_PROXY", "a proxy", "http:// or https://", fix) from error


def _path(run_id: str, rest: str = "") -> str:
    return f"/runs/{_quoted(run_id)}{rest}"


def _quoted(run_id: str) -> str:
    return quote(run_id, safe="")


def _is_over(view: RunView) -> bool:
    return view.phase == "ended" and view.facts.released


def _token() -> str:
    if token := os.environ.get("DRIVETRAIN_TOKEN"):
        return token
    file = Home.from_environment().token_file
    if not file.exists():
        fix = (
            f"A server asks for a token. Get one from its administrator and write it to {file} with mode 0600; "
            "or start a server here: `drivetrain server`."
        )
        raise InputError("token", "none", "DRIVETRAIN_TOKEN, or a file that holds it", fix)
    return read_private(Path(file))
