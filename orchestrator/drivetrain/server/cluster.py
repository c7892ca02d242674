"""Routes of the cluster: who asks, who waits, which nodes there are; and the tokens."""

from __future__ import annotations

from dataclasses import asdict

from drivetrain_pipelines.storage.checksums import JsonObject
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict

from drivetrain.server.dependencies import Admin, Server, Viewer

router = APIRouter()


class NewToken(BaseModel):
    """Whose token, and what it allows."""

    model_config = ConfigDict(extra="forbid")
    user: str
    role: str = "user"
    days: float | None = None


@router.get("/me")
def me(principal: Viewer) -> dict[str, str]:
    """Who this token belongs to, and what it allows."""
    return {"user": principal.user, "role": principal.role}


@router.get("/queue")
def queue(server: Server, _: Viewer) -> list[JsonObject]:
    """Who waits, the next first, and why."""
    return [entry.to_json() for entry in server.session.cluster().queue]


@router.get("/nodes")
def nodes(server: Server, _: Viewer) -> list[JsonObject]:
    """The cluster's nodes, and the ranks on them."""
    return [asdict(node) for node in server.session.cluster().nodes]


@router.get("/tokens")
def list_tokens(server: Server, _: Admin) -> list[JsonObject]:
    """All tokens; not the secrets, which nobody has."""
    return [asdict(info) for info in server.tokens.all()]


@router.post("/tokens", status_code=201)
def create_token(new: NewToken, server: Server, _: Admin) -> JsonObject:
    """Make a token; this is the only time that it is shown."""
    secret, info = server.tokens.create(new.user, new.role, new.days)
    return {"token": secret, **asdict(info)}


@router.delete("/tokens/{token_id}", status_code=204)
def revoke_token(token_id: str, server: Server, _: Admin) -> Response:
    """Make a token worthless."""
    server.tokens.revoke(token_id)
    return Response(status_code=204)


@router.get("/openapi.json")
def openapi(request: Request, _: Viewer) -> JsonObject:
    """This document; it asks for a token like everything else, which FastAPI's own would not."""
    document: JsonObject = request.app.openapi()
    return document
