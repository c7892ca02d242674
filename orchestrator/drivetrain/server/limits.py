"""Bounds on what one client may send: sizes and rates, checked before anything is read."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping

from limits import RateLimitItem
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SMALL_BYTES = 1 << 20


class _TooMuchError(Exception):
    """The body is larger than allowed; nothing was answered yet."""


class Limits:
    """ASGI middleware that answers 429 to too many requests of an address, and 413 to bodies that are too large.

    Args:
        app: the application behind it.
        large: the largest body in bytes, by a pattern of the paths that accept one; other bodies are small.
        rate: of one address; tokens are checked later.
    """

    def __init__(self, app: ASGIApp, large: Mapping[re.Pattern[str], int], rate: RateLimitItem) -> None:
        self._app, self._large, self._rate = app, large, rate
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        client = (scope.get("client") or ("", 0))[0]
        most = next((size for path, size in self._large.items() if path.match(scope["path"])), _SMALL_BYTES)
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
            if received > most:  # sent in chunks, without a content length
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
