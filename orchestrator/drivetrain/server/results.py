"""Routes that compute something from a run: report, comparison, sync, predictions."""

from __future__ import annotations

import base64
import binascii
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.storage.json_files import JsonObject
from fastapi import APIRouter, HTTPException, Query, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field

from drivetrain.api.compare import compare
from drivetrain.api.predictions import Input, predict_for_client
from drivetrain.api.runs import sync as sync_run
from drivetrain.reporting.report import write_report
from drivetrain.server.dependencies import Server, User, Viewer, own_run

_LONGEST_SYNC_S = 3600.0
_DRAWING = threading.Lock()  # Matplotlib is not safe to use from several threads
_MODELS = threading.BoundedSemaphore(2)  # processes that predict at the same time: each holds torch and a model
_BUSY_S = 5.0

router = APIRouter()


class GivenInput(BaseModel):
    """A text, or a file: its name, and its bytes in base64."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1)
    content: str | None = None


class Question(BaseModel):
    """What to ask a trained model about."""

    model_config = ConfigDict(extra="forbid")
    inputs: list[GivenInput] = Field(min_length=1, max_length=1000)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0)
    seed: int = 0


@router.get("/runs/{run_id}/report")
def report(run_id: str, server: Server, _: Viewer) -> HTMLResponse:
    """Return one self-contained HTML page about a run."""
    record = server.store.get(run_id)
    with _DRAWING, tempfile.TemporaryDirectory(prefix="drivetrain-report-") as made:
        return HTMLResponse(write_report(record.id, Path(made) / "report.html").read_bytes())


@router.get("/runs/{first}/diff/{second}")
def diff(first: str, second: str, _: Viewer) -> JsonObject:
    """Return the differences between two runs."""
    return asdict(compare(first, second))


@router.get("/runs/{first}/diff/{second}/losses.png")
def draw_diff(first: str, second: str, _: Viewer) -> Response:
    """Draw the losses of two runs."""
    with _DRAWING, tempfile.TemporaryDirectory(prefix="drivetrain-diff-") as made:
        picture = Path(made) / "losses.png"
        compare(first, second, picture)
        return Response(picture.read_bytes(), media_type="image/png")


@router.post("/runs/{run_id}/sync", status_code=204)
def sync(
    run_id: str,
    server: Server,
    principal: User,
    timeout_s: Annotated[float, Query(ge=0, le=_LONGEST_SYNC_S)] = 600.0,
) -> Response:
    """Send to MLflow what it has not received yet of a run that has ended."""
    sync_run(own_run(server, run_id, principal).id, timeout_s)
    return Response(status_code=204)


@router.post("/runs/{run_id}/predict")
def predict(run_id: str, question: Question, server: Server, _: User) -> list[JsonObject]:
    """Return what the newest checkpoint of a run predicts. The model runs in a separate process, with a deadline."""
    record = server.store.get(run_id)
    inputs = [_input(given) for given in question.inputs]
    if not _MODELS.acquire(timeout=_BUSY_S):
        raise HTTPException(503, "other predictions keep this server busy")
    try:
        rows = predict_for_client(server.home, record, inputs, question.max_tokens, question.temperature, question.seed)
    finally:
        _MODELS.release()
    return [*rows]


def _input(given: GivenInput) -> Input:
    if given.content is None:
        return Input(given.name)
    try:
        return Input(given.name, base64.b64decode(given.content, validate=True))
    except binascii.Error as error:
        raise InputError("inputs.content", "text that is not base64", "the file's bytes in base64") from error
