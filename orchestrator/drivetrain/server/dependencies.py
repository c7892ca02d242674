"""Dependencies of routes: the server's parts, and a principal whose role allows the route."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from drivetrain.accounting.run_account import RunAccountCache
from drivetrain.api.session import Session
from drivetrain.home import Home
from drivetrain.runs.store import RunRecord, RunStore
from drivetrain.server.access import Principal, Role, Tokens


@dataclass(frozen=True)
class Parts:
    """The server's parts.

    Attributes:
        session: with the coordinator.
        store: the records of all runs, which are read without the coordinator.
        tokens: users and their roles.
        home: folder of packages and runs.
        accounts: time and cost of all runs.
    """

    session: Session
    store: RunStore
    tokens: Tokens
    home: Home
    accounts: RunAccountCache


def _parts(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


_bearer = HTTPBearer(auto_error=False, description="a token, as `drivetrain token create` makes it")
_ASK = {"WWW-Authenticate": "Bearer"}


def _requires(role: Role) -> Callable[..., Principal]:
    def principal(
        parts: Annotated[Parts, Depends(_parts)],
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    ) -> Principal:
        if credentials is None:
            raise HTTPException(401, "a token is required", _ASK)
        found = parts.tokens.principal(credentials.credentials)
        if found is None:
            raise HTTPException(401, "the token is unknown, or has expired", _ASK)
        if not found.role.includes(role):
            raise HTTPException(403, f"the role {role} is required; the token has {found.role}")
        return found

    return principal


Server = Annotated[Parts, Depends(_parts)]
Viewer = Annotated[Principal, Depends(_requires(Role.VIEWER))]
User = Annotated[Principal, Depends(_requires(Role.USER))]
Admin = Annotated[Principal, Depends(_requires(Role.ADMIN))]


def own_run(server: Parts, run_id: str, principal: Principal) -> RunRecord:
    """Return a run that a principal may change: their own, or any for an administrator. Raises HTTPException."""
    record = server.store.get(run_id)
    if record.user != principal.user and not principal.role.includes(Role.ADMIN):
        raise HTTPException(403, f"{record.id} belongs to {record.user}; changing it needs the role admin")
    return record
