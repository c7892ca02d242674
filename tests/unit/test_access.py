"""Tokens, roles, private files and rate limits."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from pathlib import Path

import httpx
import pytest
from drivetrain.errors import NotFoundError
from drivetrain.private_files import read_private, write_private
from drivetrain.server.access import Principal, Role, Tokens
from drivetrain.server.limits import Limits
from drivetrain.server.serve import ServerSettings, serve
from drivetrain_pipelines.errors import InputError
from limits import RateLimitItemPerSecond
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from tests.clock import Clock


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return Tokens(f"sqlite:///{tmp_path / 'drivetrain.db'}")


def test_a_token_is_known_by_its_digest_alone(tokens: Tokens, tmp_path: Path) -> None:
    assert not tokens.any()
    secret, info = tokens.create("ann", "user")
    assert tokens.principal(secret) == Principal("ann", Role.USER)
    assert tokens.principal(secret + "x") is None
    assert tokens.principal("") is None
    assert tokens.all() == [info]
    dump = "\n".join(sqlite3.connect(tmp_path / "drivetrain.db").iterdump())
    assert secret not in dump
    assert secret.removeprefix("dt_") not in dump
    tokens.revoke(info.id)
    assert tokens.principal(secret) is None
    with pytest.raises(NotFoundError, match=info.id):
        tokens.revoke(info.id)


def test_tokens_expire(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("drivetrain.server.access.time", clock)
    secret, _ = tokens.create("ann", "viewer", days=2)
    clock.now += 2 * 86400 - 1
    assert tokens.principal(secret)
    clock.now += 1
    assert tokens.principal(secret) is None


@pytest.mark.parametrize(
    ("user", "role", "days"), [("", "user", None), ("a b", "user", None), ("ann", "root", None), ("ann", "user", 0)]
)
def test_wrong_tokens_are_not_made(tokens: Tokens, user: str, role: str, days: float | None) -> None:
    with pytest.raises(InputError):
        tokens.create(user, role, days)
    assert not tokens.any()


def test_roles_include_lesser_ones() -> None:
    assert [[one.includes(other) for other in Role] for one in Role] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]


def test_private_files(tmp_path: Path) -> None:
    path = tmp_path / "token"
    write_private(path, "secret\n")
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_private(path) == "secret"
    path.chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        read_private(path)


def test_each_address_has_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000_000_000.0  # a window of ten seconds begins
    monkeypatch.setattr("time.time", lambda: now)
    limits = Limits(PlainTextResponse("served"), large={}, rate=RateLimitItemPerSecond(3, 10))

    async def ask(address: str, times: int) -> list[httpx.Response]:
        transport = httpx.ASGITransport(limits, client=(address, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return [await client.get("/") for _ in range(times)]

    def statuses(address: str, times: int) -> list[int]:
        return [answer.status_code for answer in asyncio.run(ask(address, times))]

    assert statuses("192.0.2.1", 4) == [200, 200, 200, 429]
    assert statuses("192.0.2.2", 1) == [200]
    now += 4
    (refused,) = asyncio.run(ask("192.0.2.1", 1))
    assert refused.json() == {"detail": "too many requests"}
    assert refused.headers["retry-after"] == "6"
    now += 6 + 4  # six tenths of the window before count
    assert statuses("192.0.2.1", 3) == [200, 200, 429]
    now += 20
    assert statuses("192.0.2.1", 4) == [200, 200, 200, 429]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (ServerSettings(host="0.0.0.0"), "drivetrain token create"),
        (ServerSettings(certificate="no.pem"), "both, or none"),
        (ServerSettings(certificate="no.pem", key="no.key"), "a PEM file"),
        (ServerSettings(certificate=__file__, key=__file__), "both PEM"),
        (ServerSettings(host="192.0.2.1", behind_proxy=True), "drivetrain token create"),
    ],
)
def test_unsafe_servers_do_not_start(
    settings: ServerSettings, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRIVETRAIN_HOME", str(tmp_path))
    with pytest.raises(InputError, match=expected):
        serve(settings)


def test_beyond_loopback_needs_tls_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIVETRAIN_HOME", str(tmp_path))
    Tokens(f"sqlite:///{tmp_path / 'drivetrain.db'}").create("ann", "admin")
    with pytest.raises(InputError, match="--certificate and --key"):
        serve(ServerSettings(host="0.0.0.0"))


def test_what_is_sent_in_chunks_is_bounded_too() -> None:
    """Without a Content-Length the size is known only after the transfer."""

    async def takes_all(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    app = Starlette(routes=[Route("/", takes_all, methods=["PUT"])])
    app.add_middleware(Limits, large={re.compile("/"): 1000}, rate=RateLimitItemPerSecond(100))
    with TestClient(app) as client:
        assert client.put("/", content=iter([b"x" * 400, b"x" * 400])).text == "800"
        assert client.put("/", content=iter([b"x" * 400] * 3)).status_code == 413
        assert client.put("/", content=b"x" * 1001).status_code == 413
