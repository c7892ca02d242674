"""Bounds on what one client may send: sizes and rates, checked before anything is read."""

from __future__ import annotations

import time
from collections import OrderedDict

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SMALL_BYTES = 1 << 20
_MOST_CLIENTS = 10_000  # remembered; the one not heard of for longest is forgotten first


class TokenBucket:
    """So many requests a second on average, and a burst of some more, per client.

    Args:
        rate: requests a second.
        burst: that may come at once.
    """

    def __init__(self, rate: float, burst: int) -> None:
        self._rate, self._burst = rate, burst
        self._clients: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, client: str, now: float) -> float:
        """Take one request; 0, or after how many seconds it would be allowed."""
        left, at = self._clients.pop(client, (float(self._burst), now))
        left = min(float(self._burst), left + (now - at) * self._rate)
        allowed = left >= 1
        self._clients[client] = (left - 1 if allowed else left, now)
        if len(self._clients) > _MOST_CLIENTS:
            self._clients.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self._rate


class _TooMuchError(Exception):
    """More was sent than is allowed; nothing was answered yet."""


class Limits:
    """ASGI middleware: 429 for those who ask too often, 413 for those who send too much.

    Args:
        app: behind it.
        max_bytes: of the body of a request to a path that begins with ``large``; others have little to say.
        bucket: by address: a token that is not known yet tells nothing.
    """

    def __init__(self, app: ASGIApp, large: str, max_bytes: int, bucket: TokenBucket) -> None:
        self._app, self._large, self._max_bytes, self._bucket = app, large, max_bytes, bucket

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        client = (scope.get("client") or ("", 0))[0]
        most = self._max_bytes if scope["path"].startswith(self._large) else _SMALL_BYTES
        if wait := self._bucket.wait_s(client, time.monotonic()):
            await _refuse(send, 429, "too many requests", [(b"retry-after", str(int(wait) + 1).encode())])
            return
        announced = headers.get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > most:
            await _refuse(send, 413, f"more than {most} bytes")
            return
        received = 0

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > most:  # sent in chunks, without announcing how much
                raise _TooMuchError
            return message

        try:
            await self._app(scope, bounded, send)
        except _TooMuchError:
            await _refuse(send, 413, f"more than {most} bytes")


async def _refuse(send: Send, status: int, detail: str, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    body = b'{"detail": "%s"}' % detail.encode()
    start = {"type": "http.response.start", "status": status}
    await send({**start, "headers": [(b"content-type", b"application/json"), *(headers or [])]})
    await send({"type": "http.response.body", "body": body})
