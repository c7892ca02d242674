"""Routes of runs: submit, look, follow, change."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated

from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.storage.checksums import JsonObject
from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from drivetrain.job import bundle
from drivetrain.job.loading import load_job
from drivetrain.job.provenance import GitState
from drivetrain.runs.states import Ended
from drivetrain.runs.store import RunRecord
from drivetrain.runs.view import RunView
from drivetrain.server.access import Principal, Role
from drivetrain.server.dependencies import Parts, Server, User, Viewer
from drivetrain.server.logs import follow
from drivetrain.tracking.tracking_uri import without_credentials

_LONGEST_POLL_S = 30.0

router = APIRouter()


class Submission(BaseModel):
    """A job to run: a package that was uploaded before, and what to change about it."""

    model_config = ConfigDict(extra="forbid")
    package: str = Field(pattern=r"^[0-9a-f]{64}$")
    job_file: str = Field("job.yaml", pattern=r"^[\w][\w .-]{0,199}$")
    overrides: list[str] = Field([], max_length=200)
    idempotency_key: str | None = Field(None, min_length=1, max_length=200)
    git: GitState = GitState()


@router.put("/packages/{digest}", status_code=201)
async def put_package(digest: str, request: Request, server: Server, _: User) -> dict[str, str]:
    """Upload a job's folder, named by the SHA-256 of its bytes."""
    content = await request.body()
    if bundle.digest(content) != digest:
        raise InputError("package", "bytes with another digest", digest, "Upload it again.")
    await asyncio.to_thread(bundle.unpack, content, server.home.packages / digest)
    return {"package": digest}


@router.get("/packages/{digest}")
def has_package(digest: str, server: Server, _: User) -> dict[str, bool]:
    """Whether a package is there already."""
    return {"there": (server.home.packages / digest).is_dir()}


@router.post("/runs", status_code=201)
def submit(submission: Submission, server: Server, principal: User) -> JsonObject:
    """Begin a run. The same idempotency key twice makes one."""
    folder = server.home.packages / submission.package
    if not folder.is_dir():
        raise InputError("package", submission.package, "one that was uploaded", "Upload it first.")
    job = load_job(str(folder / submission.job_file), submission.overrides)
    return _summary(server.session.submit(job, principal.user, submission.idempotency_key, submission.git))


@router.get("/runs")
def list_runs(
    server: Server,
    _: Viewer,
    user: str | None = None,
    phase: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    before: Annotated[str | None, Query(max_length=300)] = None,
) -> list[JsonObject]:
    """Runs, newest first; ``before`` the id of the last one of the page before."""
    return [_summary(record) for record in server.store.page(limit, before, user=user, phase=phase)]


@router.get("/runs/{run_id}")
def get_run(run_id: str, server: Server, _: Viewer) -> JsonObject:
    """A run: its record, its live figures, its history."""
    record = server.store.get(run_id)
    history = [{"time": at, "phase": state.phase, "why": why} for at, why, state in server.store.history(record.id)]
    return {**_summary(record), "view": _public(server.session.view(record.id).to_json()), "history": history}


@router.get("/runs/{run_id}/account")
def get_account(run_id: str, server: Server, _: Viewer) -> JsonObject:
    """Where the time of a run has gone, and what it has cost, up to now."""
    return server.accounts.of(run_id).to_json()


@router.get("/runs/{run_id}/view")
async def get_view(
    run_id: str,
    server: Server,
    _: Viewer,
    known_version: int = -1,
    timeout_s: Annotated[float, Query(ge=0, le=_LONGEST_POLL_S)] = 10.0,
) -> JsonObject:
    """Live figures, as soon as they are newer than the version that is known (or after the timeout)."""
    record = await asyncio.to_thread(server.store.get, run_id)
    view: RunView = await asyncio.to_thread(server.session.view, record.id, known_version, timeout_s)
    return _public(view.to_json())


@router.get("/runs/{run_id}/logs")
def get_logs(
    run_id: str,
    server: Server,
    _: Viewer,
    rank: Annotated[int | None, Query(ge=0)] = None,
    to_the_end: Annotated[bool, Query(alias="follow")] = False,
) -> StreamingResponse:
    """What the ranks have printed, and with ``follow`` what they go on to print, until the run has ended."""
    record = server.store.get(run_id)
    lines = follow(server.home.run(record.id), rank, lambda: not to_the_end or server.store.get(record.id).ended)
    return StreamingResponse(lines, media_type="text/plain; charset=utf-8")


@router.post("/runs/{run_id}/cancel")
def cancel(run_id: str, server: Server, principal: User) -> JsonObject:
    """Have a run save and end."""
    record = _own(server, run_id, principal)
    if not isinstance(record.state, Ended):
        server.session.cancel(record.id)
    return _summary(server.store.get(record.id))


@router.post("/runs/{run_id}/resume")
def resume(run_id: str, server: Server, principal: User) -> JsonObject:
    """Go on with a run that was cancelled or has failed."""
    return _summary(server.session.resume(_own(server, run_id, principal).id))


@router.post("/runs/{run_id}/retry", status_code=201)
def retry(run_id: str, server: Server, principal: User) -> JsonObject:
    """Begin a new run of the same job."""
    return _summary(server.session.retry(server.store.get(run_id).id, principal.user))


def _own(server: Parts, run_id: str, principal: Principal) -> RunRecord:
    record = server.store.get(run_id)
    if record.user != principal.user and not principal.role.includes(Role.ADMIN):
        raise HTTPException(403, f"{record.id} is {record.user}'s; that needs the role admin")
    return record


def _summary(record: RunRecord) -> JsonObject:
    return {
        "run_id": record.id,
        "user": record.user,
        "created": record.created,
        "phase": record.state.phase,
        "progress": asdict(record.state.progress),
        "reason": record.facts.reason,
        "ended": record.ended,
    } | _public({"facts": record.facts.to_json()})


def _public(answer: JsonObject) -> JsonObject:
    """An answer without the password that the tracking server's address may hold."""
    facts = dict(answer["facts"])
    if uri := facts.get("mlflow_uri"):
        facts["mlflow_uri"] = without_credentials(uri)
    return {**answer, "facts": facts}
