"""`drivetrain server` and `drivetrain token ...`."""

from __future__ import annotations

import json
import time
from dataclasses import asdict

from drivetrain.cli.errors import errors
from drivetrain.home import Home
from drivetrain.server.access import TokenInfo, Tokens
from drivetrain.server.serve import ServerSettings, serve


def run_server(
    host: str, port: int, certificate: str | None, key: str | None, behind_proxy: bool, address: str | None
) -> None:
    """`drivetrain server`."""
    with errors():
        serve(ServerSettings(host, port, certificate, key, behind_proxy, address))


def create_token(user: str, role: str, days: float | None, as_json: bool) -> None:
    """`drivetrain token create`."""
    with errors():
        secret, info = _tokens().create(user, role, days)
        print(json.dumps({"token": secret, **asdict(info)}) if as_json else secret)


def list_tokens(as_json: bool) -> None:
    """`drivetrain token list`."""
    with errors():
        for info in _tokens().all():
            print(json.dumps(asdict(info)) if as_json else f"{info.id}  {info.user:20} {info.role:7} {_until(info)}")


def revoke_token(token_id: str) -> None:
    """`drivetrain token revoke`."""
    with errors():
        _tokens().revoke(token_id)


def _tokens() -> Tokens:
    return Tokens(Home.from_environment().database_url)


def _until(info: TokenInfo) -> str:
    if info.expires is None:
        return "does not expire"
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.expires))
    return f"expired {when}" if info.expires < time.time() else f"expires {when}"
