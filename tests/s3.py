"""A real S3 server (SeaweedFS) on loopback, and a proxy in front of it that injects faults of object storage."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from aiohttp import web
from drivetrain_pipelines.spec import StorageSpec

_WEED = Path(sys.executable).with_name("weed")
_KEY, _SECRET = "testkey", "testsecret"
KEYS = {"AWS_ACCESS_KEY_ID": _KEY, "AWS_SECRET_ACCESS_KEY": _SECRET, "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass
class Faults:
    """Shares of GETs that fail, by kind of fault, and of PUTs (``refused``); ``down`` refuses all requests."""

    slow_down: float = 0.0
    internal_error: float = 0.0
    cut: float = 0.0
    truncated: float = 0.0
    flipped: float = 0.0
    slow_first_byte: float = 0.0
    refused: float = 0.0
    down: bool = False
    seen: Counter[str] = field(default_factory=Counter)


@dataclass
class S3:
    """A bucket behind the proxy.

    Attributes:
        url: ``s3://`` URL of an empty bucket.
        direct: access to the server itself.
        storage: access through the proxy.
    """

    url: str
    direct: StorageSpec
    storage: StorageSpec
    faults: Faults


@contextmanager
def s3_server(folder: Path) -> Iterator[S3]:
    """Start server and proxy; both end with the context."""
    ports = _free_ports(9)
    (folder / "s3.json").write_text(json.dumps(_IDENTITIES))
    names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
    options = [f"-{name}={port}" for name, port in zip((*names, "s3.port", "s3.port.grpc"), ports, strict=False)]
    fixed = ["-ip=127.0.0.1", f"-dir={folder}", "-s3", f"-s3.config={folder}/s3.json", "-volume.max=20"]
    quiet = ["-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.volumeSizeLimitMB=256"]
    log = (folder / "weed.log").open("wb")
    server = subprocess.Popen([_WEED, "server", *fixed, *quiet, *options], stdout=log, stderr=log)
    before = {name: os.environ.get(name) for name in KEYS}
    os.environ |= KEYS
    faults = Faults()
    proxy = _Proxy(f"http://127.0.0.1:{ports[6]}", ports[8], faults)
    try:
        direct = StorageSpec(endpoint_url=f"http://127.0.0.1:{ports[6]}")
        bucket = f"bucket-{uuid.uuid4().hex[:8]}"
        _make_bucket(direct, bucket, server, folder)
        proxy.start()
        yield S3(f"s3://{bucket}", direct, StorageSpec(endpoint_url=f"http://127.0.0.1:{ports[8]}"), faults)
    finally:
        proxy.stop()
        server.kill()  # a regular shutdown takes half a minute
        server.wait()
        log.close()
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


_IDENTITIES = {
    "identities": [
        {
            "name": "tests",
            "credentials": [{"accessKey": _KEY, "secretKey": _SECRET}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        },
        {"name": "anonymous", "actions": ["Read:public", "List:public"]},
    ]
}


def _make_bucket(storage: StorageSpec, name: str, server: subprocess.Popen[bytes], folder: Path) -> None:
    import s3fs

    deadline = time.monotonic() + 60
    while True:
        try:
            s3fs.S3FileSystem(endpoint_url=storage.endpoint_url, skip_instance_cache=True).mkdir(name)
        except Exception:  # any error before it is ready
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((folder / "weed.log").read_text()[-3000:]) from None
            time.sleep(0.3)
        else:
            return


class _Proxy:
    """Forwards requests with their signatures, except when a fault is due."""

    def __init__(self, upstream: str, port: int, faults: Faults) -> None:
        self._upstream, self._port, self._faults = upstream, port, faults
        self._draw = random.Random(0)
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._up.wait()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.run_forever()
        self._loop.run_until_complete(self._session.close())
        self._loop.run_until_complete(self._runner.cleanup())
        self._loop.close()

    async def _serve(self) -> None:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._pass)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._up.set()

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        faults = self._faults
        if faults.down:
            faults.seen["down"] += 1
            assert request.transport
            request.transport.abort()
            return web.Response()
        fault = self._choose(request)
        if fault:
            faults.seen[fault] += 1
        if fault in ("slow_down", "refused"):
            return _error(503, "SlowDown")
        if fault == "internal_error":
            return _error(500, "InternalError")
        if fault == "slow_first_byte":
            await asyncio.sleep(1.5)
        # The signature covers the host that the client used, so the header is forwarded.
        url = self._upstream + request.raw_path
        body = await request.read()
        async with self._session.request(request.method, url, data=body, headers=request.headers) as answer:
            content = bytearray(await answer.read())
            headers = {k: v for k, v in answer.headers.items() if k not in ("Transfer-Encoding", "Content-Length")}
            if request.method == "HEAD":
                return web.Response(status=answer.status, headers=answer.headers)
            if fault == "flipped" and content:
                content[self._draw.randrange(len(content))] ^= 1 << self._draw.randrange(8)
            if fault in ("cut", "truncated") and content:
                return await self._break_response(request, answer.status, headers, content, announced=fault == "cut")
            return web.Response(status=answer.status, headers=headers, body=bytes(content))

    async def _break_response(
        self, request: web.Request, status: int, headers: dict[str, str], content: bytearray, announced: bool
    ) -> web.StreamResponse:
        """Send half of the body: break the connection before the announced end, or announce an earlier end."""
        half = bytes(content[: len(content) // 2])
        if not announced:
            return web.Response(status=status, headers=headers, body=half)
        response = web.StreamResponse(status=status, headers={**headers, "Content-Length": str(len(content))})
        await response.prepare(request)
        await response.write(half)
        assert request.transport
        request.transport.abort()
        return response

    def _choose(self, request: web.Request) -> str | None:
        drawn = self._draw.random()
        if request.method in ("PUT", "POST"):
            return "refused" if drawn < self._faults.refused else None
        if request.method != "GET" or "list-type" in request.query_string:
            return None
        for name in ("slow_down", "internal_error", "cut", "truncated", "flipped", "slow_first_byte"):
            drawn -= getattr(self._faults, name)
            if drawn < 0:
                return name
        return None


def _error(status: int, code: str) -> web.Response:
    text = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>"
    return web.Response(status=status, content_type="application/xml", text=text)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            with suppress(OSError):
                one.close()
