"""What routes ask for: the server's parts, and a principal whose role allows the route."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from drivetrain.accounting.run_account import RunAccountCache
from drivetrain.api.session import Session
from drivetrain.home import Home
from drivetrain.runs.store import RunStore
from drivetrain.server.access import Principal, Role, Tokens


@dataclass(frozen=True)
class Parts:
    """The server's parts.

    Attributes:
        session: to the coordinator.
        store: of all runs, to look things up without asking the coordinator.
        tokens: who may do what.
        home: where packages and runs lie.
        accounts: of all runs.
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
            raise HTTPException(401, "this needs a token", _ASK)
        found = parts.tokens.principal(credentials.credentials)
        if found is None:
            raise HTTPException(401, "this token is not known here, or has expired", _ASK)
        if not found.role.includes(role):
            raise HTTPException(403, f"this needs the role {role}; the token has {found.role}")
        return found

    return principal


Server = Annotated[Parts, Depends(_parts)]
Viewer = Annotated[Principal, Depends(_requires(Role.VIEWER))]
User = Annotated[Principal, Depends(_requires(Role.USER))]
Admin = Annotated[Principal, Depends(_requires(Role.ADMIN))]
