"""Requests to a server: sent again while it is unavailable or busy; refusals as the errors of local runs."""

from __future__ import annotations

from typing import Any

import httpx
from drivetrain_pipelines.errors import DrivetrainError, InputError
from drivetrain_pipelines.user_code import describe
from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_random_exponential

from drivetrain.errors import AnswerLostError, NotFoundError, ServerError

_RETRY_S = 60.0  # a server that is restarted is back within that
_ATTEMPTS = 3  # at least: one that receives no answer until its timeout uses up the time for retries
_BUSY, _LOST_BEHIND_A_PROXY = (429, 502, 503, 504), (502, 504)
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)
_MAX_SHOWN = 300  # characters of an answer that is no JSON
_ONCE = ("/retry", "/predict", "/sync")  # ends of paths that are not requested twice


class _BusyError(Exception):
    """The server asks to try again."""


def send(http: httpx.Client, server: str, method: str, path: str, **request: Any) -> httpx.Response:
    """Send a request, again while the server is unavailable or busy. All but those in `_ONCE` may be sent twice.

    Raises:
        AnswerLostError: the server may have received the request.
    """
    received = False  # by the server, perhaps

    def may_be_sent_again(error: BaseException) -> bool:
        nonlocal received
        lost = isinstance(error, _BusyError) and error.args[0] in _LOST_BEHIND_A_PROXY
        lost |= isinstance(error, httpx.TransportError) and not isinstance(error, _NEVER_SENT)
        received |= lost
        return isinstance(error, httpx.TransportError | _BusyError) and not (lost and path.endswith(_ONCE))

    retrying = Retrying(
        retry=retry_if_exception(may_be_sent_again),
        wait=wait_random_exponential(0.2, 5),
        stop=stop_after_delay(_RETRY_S) & stop_after_attempt(_ATTEMPTS),
        reraise=True,
    )
    try:
        for attempt in retrying:
            with attempt:
                response = http.send(http.build_request(method, path, **request))
                if response.status_code in _BUSY:
                    raise _BusyError(response.status_code, " ".join(response.text.split())[:_MAX_SHOWN])
    except httpx.TransportError as error:
        if received:
            lost_at = f"no answer came from {server}, which may have done what was requested"
            raise AnswerLostError(0, f"{lost_at}: {describe(error)}") from error
        raise ServerError(0, f"no Drivetrain server answers at {server}: {describe(error)}") from error
    except _BusyError as error:
        kind = AnswerLostError if received else ServerError
        raise kind(error.args[0], f"{server} is too busy: {error.args[1]}") from error
    if response.is_error:
        raise error_of(server, response)
    return response


def error_of(server: str, response: httpx.Response) -> DrivetrainError:
    """Return the error that a refusal stands for."""
    try:
        body = response.json()
    except ValueError:
        body = {}
    body = body if isinstance(body, dict) else {}
    if "missing" in body:
        missing = NotFoundError.from_json(body["missing"])
        local = "`drivetrain list` without a server shows the runs of this machine." if missing.kind == "run" else ""
        return NotFoundError(missing.kind, missing.name, missing.known, server, local)
    if "input" in body:
        return InputError(**body["input"])
    detail = body.get("detail", response.text)
    return ServerError(response.status_code, detail if isinstance(detail, str) else str(detail))
