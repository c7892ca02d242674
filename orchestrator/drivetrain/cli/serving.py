"""`drivetrain server` and `drivetrain token ...`."""

from __future__ import annotations

import json
import time
from dataclasses import asdict

from drivetrain.cli.errors import errors
from drivetrain.cli.tables import FAILED, Cell, Column, print_table
from drivetrain.home import Home
from drivetrain.server.access import TokenInfo, Tokens
from drivetrain.server.serve import ServerSettings, serve

_COLUMNS = (Column("id"), Column("user"), Column("role"), Column("expires"))


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
        found = _tokens().all()
        if as_json:
            for info in found:
                print(json.dumps(asdict(info)))
        elif found:
            print_table(_COLUMNS, [(info.id, info.user, str(info.role), _expiry(info)) for info in found])
        else:
            print("no token yet; `drivetrain token create --user NAME` creates one")


def revoke_token(token_id: str, as_json: bool) -> None:
    """`drivetrain token revoke`."""
    with errors():
        _tokens().revoke(token_id)
        print(json.dumps({"revoked": token_id}) if as_json else f"revoked {token_id}")


def _tokens() -> Tokens:
    return Tokens(Home.from_environment().database_url)


def _expiry(info: TokenInfo) -> Cell:
    if info.expires is None:
        return "never"
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.expires))
    return (f"{when} (expired)", FAILED) if info.expires < time.time() else when
