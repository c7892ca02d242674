"""A real MLflow server behind a proxy that can be slow, broken or unavailable."""

from __future__ import annotations

import asyncio
import io
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import aiohttp
import httpx
from aiohttp import web

USER, PASSWORD = "admin", "a long password"
_SLOW_S = 5.0
_AUTH = """[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:///{folder}/users.db
admin_username = {user}
admin_password = {password}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


class MlflowServer:
    """The server; it listens on loopback.

    Attributes:
        uri: of the proxy, for clients.
        mode: ``good``, ``slow`` (five seconds a call), ``broken`` (every call answers 500) or ``away``.
        refused: status that calls answer whose path contains a text, by that text.
        calls: that have come.
    """

    def __init__(self, folder: Path, store: str | None, artifacts: str | None, users: bool) -> None:
        self._port = _free_port()
        places = {
            "backend-store-uri": store or f"sqlite:///{folder}/mlflow.db",
            "artifacts-destination": artifacts or f"{folder}/artifacts",
        }
        self._options = [f"--{name}={place}" for name, place in places.items()]
        self._environment = dict(os.environ)
        if users:
            self._options.append("--app-name=basic-auth")
            settings = folder / "auth.ini"
            settings.write_text(_AUTH.format(folder=folder, user=USER, password=PASSWORD))
            secret = {"MLFLOW_FLASK_SERVER_SECRET_KEY": "of a test", "MLFLOW_AUTH_CONFIG_PATH": str(settings)}
            self._environment |= secret
        self.direct = f"http://127.0.0.1:{self._port}"
        self.uri, self.mode, self.calls = f"http://127.0.0.1:{_free_port()}", "good", 0
        self.refused: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        """Whether it was started and not killed."""
        return self._process is not None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        self._process = subprocess.Popen(
            [*command, *self._options, "--workers", "1"],
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.direct}/health").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.2)
        raise AssertionError("the MLflow server did not start")

    def kill(self) -> None:
        """Kill the server immediately, with its workers."""
        if self._process:
            subprocess.run(["kill", "-9", "--", f"-{self._process.pid}"], check=True)
            self._process.wait()
            self._process = None

    async def serve(self) -> None:
        """Run the proxy until it is cancelled."""
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._forward)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", int(self.uri.rpartition(":")[2])).start()
        try:
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    async def _forward(self, request: web.Request) -> web.Response:
        self.calls += 1
        if self.mode == "slow":
            await asyncio.sleep(_SLOW_S)
        elif self.mode == "broken":
            return web.Response(status=500, text="broken")
        elif self.mode == "away" and request.transport:
            request.transport.abort()
            return web.Response()
        for part, status in self.refused.items():
            if part in request.path:
                return web.Response(status=status, text="refused")
        dropped = ("host", "content-length")
        headers = {key: value for key, value in request.headers.items() if key.lower() not in dropped}
        try:
            async with aiohttp.ClientSession(auto_decompress=False) as session:
                body = await request.read()
                url = f"{self.direct}{request.rel_url}"
                async with session.request(request.method, url, headers=headers, data=io.BytesIO(body)) as answer:
                    return web.Response(
                        status=answer.status,
                        body=await answer.read(),
                        headers={"Content-Type": answer.headers.get("Content-Type", "application/json")},
                    )
        except aiohttp.ClientError:
            return web.Response(status=503, text="no server behind the proxy")


@contextmanager
def mlflow_server(
    folder: Path, store: str | None = None, artifacts: str | None = None, users: bool = False
) -> Iterator[MlflowServer]:
    """Run a server for the duration of a test.

    Args:
        store: URL of its database; SQLite in ``folder`` by default.
        artifacts: where it puts what it is sent; ``folder`` by default.
        users: it wants to know who asks: `USER` with `PASSWORD`.
    """
    server = MlflowServer(folder, store, artifacts, users)
    loop = asyncio.new_event_loop()
    task: asyncio.Task[None] = loop.create_task(server.serve())
    thread = threading.Thread(target=_run, args=(loop, task), name="mlflow-proxy")
    thread.start()
    try:
        server.start()
        yield server
    finally:
        server.kill()
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        loop.close()


def _run(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
    with suppress(asyncio.CancelledError):
        loop.run_until_complete(task)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
