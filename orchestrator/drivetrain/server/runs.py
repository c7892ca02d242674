"""Routes of runs: submit, read, follow, change."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Annotated

from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.storage.json_files import JsonObject
from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from drivetrain.api.interface import RunInfo
from drivetrain.api.run_info import full_info, list_infos
from drivetrain.job import bundle
from drivetrain.job.loading import load_job
from drivetrain.job.provenance import GitState
from drivetrain.runs.facts import RunFacts
from drivetrain.runs.states import Ended
from drivetrain.runs.store import RunRecord
from drivetrain.runs.view import RunView
from drivetrain.server.dependencies import Parts, Server, User, Viewer, own_run
from drivetrain.server.logs import follow
from drivetrain.tracking.tracking_uri import without_credentials

_LONGEST_POLL_S = 30.0

router = APIRouter()


class Submission(BaseModel):
    """A job to run: a package that was uploaded before, and overrides."""

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
    """Return whether a package was uploaded already."""
    return {"there": (server.home.packages / digest).is_dir()}


@router.post("/runs", status_code=201)
def submit(submission: Submission, server: Server, principal: User) -> JsonObject:
    """Start a run. Two submissions of a user with the same idempotency key make one."""
    folder = server.home.packages / submission.package
    if not folder.is_dir():
        raise InputError("package", submission.package, "a package that was uploaded", "Upload it first.")
    job = load_job(str(folder / submission.job_file), submission.overrides, unpacked=True)
    return _answer(server, server.session.submit(job, principal.user, submission.idempotency_key, submission.git))


@router.get("/runs")
def list_runs(
    server: Server,
    _: Viewer,
    user: str | None = None,
    phase: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    before: Annotated[str | None, Query(max_length=300)] = None,
) -> list[JsonObject]:
    """Return runs, newest first; ``before`` is the id of the last run of the previous page."""
    records = server.store.page(limit, before, user=user, phase=phase)
    return [_public(info).to_json() for info in list_infos(server.home, server.store, records)]


@router.get("/runs/{run_id}")
def get_run(run_id: str, server: Server, _: Viewer) -> JsonObject:
    """Return a run: its record, its live figures, its history, its account."""
    record = server.store.get(run_id)
    live = None if record.ended else server.session.view(record.id)
    return _public(full_info(server.home, server.store, server.accounts, record, live)).to_json()


@router.get("/runs/{run_id}/account")
def get_account(run_id: str, server: Server, _: Viewer) -> JsonObject:
    """Return the time of a run by class, and its cost, up to now."""
    return server.accounts.of(run_id).to_json()


@router.get("/runs/{run_id}/view")
async def get_view(
    run_id: str,
    server: Server,
    _: Viewer,
    known_version: int = -1,
    timeout_s: Annotated[float, Query(ge=0, le=_LONGEST_POLL_S)] = 10.0,
) -> JsonObject:
    """Return live figures when they are newer than the known version, or after the timeout."""
    record = await asyncio.to_thread(server.store.get, run_id)
    view: RunView = await asyncio.to_thread(server.session.view, record.id, known_version, timeout_s)
    return replace(view, facts=_public_facts(view.facts)).to_json()


@router.get("/runs/{run_id}/logs")
def get_logs(
    run_id: str,
    server: Server,
    _: Viewer,
    rank: Annotated[int | None, Query(ge=0)] = None,
    to_the_end: Annotated[bool, Query(alias="follow")] = False,
) -> StreamingResponse:
    """Return what the ranks have printed; with ``follow`` also what they print until the run has ended."""
    record = server.store.get(run_id)
    lines = follow(server.home.run(record.id), rank, lambda: not to_the_end or server.store.get(record.id).ended)
    return StreamingResponse(lines, media_type="text/plain; charset=utf-8")


@router.post("/runs/{run_id}/cancel")
def cancel(run_id: str, server: Server, principal: User) -> JsonObject:
    """Ask a run to save a checkpoint and end."""
    record = own_run(server, run_id, principal)
    if not isinstance(record.state, Ended):
        server.session.cancel(record.id)
    return _answer(server, server.store.get(record.id))


@router.post("/runs/{run_id}/resume")
def resume(run_id: str, server: Server, principal: User) -> JsonObject:
    """Resume a run that was cancelled or has failed."""
    return _answer(server, server.session.resume(own_run(server, run_id, principal).id))


@router.post("/runs/{run_id}/retry", status_code=201)
def retry(run_id: str, server: Server, principal: User) -> JsonObject:
    """Start a new run of the same job."""
    return _answer(server, server.session.retry(server.store.get(run_id).id, principal.user))


def _answer(server: Parts, record: RunRecord) -> JsonObject:
    return _public(list_infos(server.home, server.store, [record])[0]).to_json()


def _public(info: RunInfo) -> RunInfo:
    """Return a run without the password that the tracking server's address may hold."""
    view = replace(info.view, facts=_public_facts(info.view.facts)) if info.view else None
    return replace(info, facts=_public_facts(info.facts), view=view)


def _public_facts(facts: RunFacts) -> RunFacts:
    return facts.updated(mlflow_uri=without_credentials(facts.mlflow_uri)) if facts.mlflow_uri else facts
