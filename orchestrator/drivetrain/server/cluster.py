"""Routes of the cluster: caller, queue, nodes; and the tokens."""

from __future__ import annotations

from dataclasses import asdict

from drivetrain_pipelines.storage.json_files import JsonObject
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict

from drivetrain.server.dependencies import Admin, Server, Viewer

router = APIRouter()


class NewToken(BaseModel):
    """The user and the role of a token to create."""

    model_config = ConfigDict(extra="forbid")
    user: str
    role: str = "user"
    days: float | None = None


@router.get("/me")
def me(principal: Viewer) -> dict[str, str]:
    """Return the user and the role of the token of the request."""
    return {"user": principal.user, "role": principal.role}


@router.get("/queue")
def queue(server: Server, _: Viewer) -> list[JsonObject]:
    """Return the queued runs, the next first, each with what it waits for."""
    return [entry.to_json() for entry in server.session.cluster().queue]


@router.get("/nodes")
def nodes(server: Server, _: Viewer) -> list[JsonObject]:
    """Return the nodes of the cluster, with the ranks on them."""
    return [asdict(node) for node in server.session.cluster().nodes]


@router.get("/tokens")
def list_tokens(server: Server, _: Admin) -> list[JsonObject]:
    """Return all tokens, without their secrets, which are not stored."""
    return [asdict(info) for info in server.tokens.all()]


@router.post("/tokens", status_code=201)
def create_token(new: NewToken, server: Server, _: Admin) -> JsonObject:
    """Create a token; only this answer holds its secret."""
    secret, info = server.tokens.create(new.user, new.role, new.days)
    return {"token": secret, **asdict(info)}


@router.delete("/tokens/{token_id}", status_code=204)
def revoke_token(token_id: str, server: Server, _: Admin) -> Response:
    """Delete a token."""
    server.tokens.revoke(token_id)
    return Response(status_code=204)


@router.get("/openapi.json")
def openapi(request: Request, _: Viewer) -> JsonObject:
    """Return this document. It requires a token, which FastAPI's own route would not."""
    document: JsonObject = request.app.openapi()
    return document
