"""`drivetrain server`: the HTTP API over a session with the coordinator, on this machine's Ray or a new one."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.storage.proxies import is_loopback

from drivetrain.accounting.run_account import RunAccountCache
from drivetrain.api.session import open_session
from drivetrain.home import Home, user_name
from drivetrain.private_files import write_private
from drivetrain.runs.store import RunStore
from drivetrain.scheduling.rules import load_rules
from drivetrain.server.access import Role, Tokens
from drivetrain.server.app import create_app
from drivetrain.server.dependencies import Parts

_GOODBYE_S = 5


@dataclass(frozen=True)
class ServerSettings:
    """Where the server listens.

    Attributes:
        host: an address; beyond loopback it needs tokens and TLS, or a proxy that does TLS.
        certificate, key: PEM files for TLS.
        behind_proxy: whether a proxy in front does TLS.
        address: of the Ray cluster, see `drivetrain.api.session.connect`.
    """

    host: str = "127.0.0.1"
    port: int = 8900
    certificate: str | None = None
    key: str | None = None
    behind_proxy: bool = False
    address: str | None = None


def serve(settings: ServerSettings) -> None:
    """Serve until SIGINT or SIGTERM. Runs continue while Ray runs; a restarted server finds them.

    Raises:
        InputError: the settings are unsafe or do not work; nothing was started.
    """
    home = Home.from_environment()
    tokens = Tokens(home.database_url)
    _check(settings, tokens)
    load_rules(home.scheduling_rules)  # an error in it is reported now; later it is only logged
    listener = _listen(settings.host, settings.port)
    try:
        if not tokens.any():
            secret, _ = tokens.create(user_name(), Role.ADMIN)
            write_private(home.token_file, secret)
            print(f"created a first token for {user_name()}, role admin: {home.token_file}", flush=True)
        with open_session(settings.address, shared=True) as session:
            for problem in session.recover():
                print(f"cannot recover {problem}", flush=True)
            store = RunStore(home.database_url)
            config = uvicorn.Config(
                create_app(Parts(session, store, tokens, home, RunAccountCache(home, store))),
                ssl_certfile=settings.certificate,
                ssl_keyfile=settings.key,
                log_level="warning",
                server_header=False,
                timeout_graceful_shutdown=_GOODBYE_S,
            )
            scheme = "https" if settings.certificate else "http"
            print(f"serving at {scheme}://{settings.host}:{listener.getsockname()[1]}", flush=True)
            uvicorn.Server(config).run(sockets=[listener])
    finally:
        listener.close()


def _check(settings: ServerSettings, tokens: Tokens) -> None:
    if bool(settings.certificate) != bool(settings.key):
        raise InputError("--certificate, --key", "one of them", "both, or none")
    for option, file in (("--certificate", settings.certificate), ("--key", settings.key)):
        if file and not Path(file).is_file():
            raise InputError(option, repr(file), "a PEM file")
    if settings.certificate and settings.key:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(settings.certificate, settings.key, password="")  # or it would prompt
        except (ssl.SSLError, OSError) as error:
            given = f"{settings.certificate}, {settings.key}: {error}"
            raise InputError(
                "--certificate, --key", given, "a certificate and its key, both PEM, no password"
            ) from error
    if is_loopback(settings.host):
        return
    if not tokens.any():
        fix = "Make one with `drivetrain token create --user NAME --role admin`."
        raise InputError("--host", repr(settings.host), "127.0.0.1, while there is no token", fix)
    if not settings.certificate and not settings.behind_proxy:
        fix = "Give --certificate and --key for TLS, or --behind-proxy where a proxy does it."
        raise InputError("--host", repr(settings.host), "127.0.0.1 without TLS, since tokens would be readable", fix)


def _listen(host: str, port: int) -> socket.socket:
    """Listen before anything is started: a port in use is reported immediately."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise InputError(
            "--host, --port", f"{host}:{port}", "an address of this machine, a free port", str(error)
        ) from error
    # Connections inherit it. asyncio sets it only on sockets that it creates; without it, each answer takes 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
