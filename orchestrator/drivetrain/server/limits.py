"""Bounds on what one client may send: sizes and rates, checked before anything is read."""

from __future__ import annotations

import math
import time

from limits import RateLimitItem
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SMALL_BYTES = 1 << 20


class _TooMuchError(Exception):
    """More was sent than is allowed; nothing was answered yet."""


class Limits:
    """ASGI middleware: status 429 for clients that ask too often, 413 for requests that are too large.

    Args:
        app: behind it.
        max_bytes: of the body of a request to a path that begins with ``large``; other bodies are small.
        rate: of one address; a token is not yet checked here.
    """

    def __init__(self, app: ASGIApp, large: str, max_bytes: int, rate: RateLimitItem) -> None:
        self._app, self._large, self._max_bytes, self._rate = app, large, max_bytes, rate
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        client = (scope.get("client") or ("", 0))[0]
        most = self._max_bytes if scope["path"].startswith(self._large) else _SMALL_BYTES
        if not await self._limiter.hit(self._rate, client):
            retry_after = str(await self._seconds_until_allowed(client)).encode()
            await _refuse(send, 429, "too many requests", [(b"retry-after", retry_after)])
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

    async def _seconds_until_allowed(self, client: str) -> int:
        window = await self._limiter.get_window_stats(self._rate, client)
        return max(1, math.ceil(window.reset_time - time.time()))


async def _refuse(send: Send, status: int, detail: str, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    body = b'{"detail": "%s"}' % detail.encode()
    start = {"type": "http.response.start", "status": status}
    await send({**start, "headers": [(b"content-type", b"application/json"), *(headers or [])]})
    await send({"type": "http.response.body", "body": body})
