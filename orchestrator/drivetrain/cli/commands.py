"""The verbs on the checkpoints of local runs."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import typer
from drivetrain_pipelines.errors import InputError
from drivetrain_workers.checkpoints.remote import RemoteCheckpoints
from drivetrain_workers.checkpoints.store import committed, describe_all
from drivetrain_workers.errors import CheckpointError
from drivetrain_workers.model_processes.requests import ExportRequest, run_request
from drivetrain_workers.records.run_folder import RunFolder

from drivetrain.api.local import LocalRuns
from drivetrain.api.predictions import begun
from drivetrain.cli.errors import FAILED, errors
from drivetrain.cli.place import ONLY_LOCAL
from drivetrain.cli.tables import FAILED as RED
from drivetrain.cli.tables import OK, Cell, Column, print_table
from drivetrain.errors import NotFoundError
from drivetrain.home import Home

_COLUMNS = (
    Column("step", right=True),
    Column("MB", right=True),
    Column("generation", right=True, optional=3),
    Column("ranks", right=True, optional=2),
    Column("ZeRO", right=True, optional=1),
    Column("eval loss", right=True),
    Column("metrics", wrap=True, optional=4),
    Column("state", wrap=True),
)


def export_model(run_id: str, target: str, step: int | None, as_json: bool) -> None:
    """`drivetrain export`."""
    with errors():
        if Path(target).is_file():
            raise InputError("--to", repr(target), "a folder, or a name that does not exist yet")
        folder, dataset = _begun(run_id)
        if step is not None and step not in (steps := [each.step for each in committed(folder.checkpoints)]):
            raise NotFoundError("checkpoint", str(step), [str(each) for each in steps], folder.path.name)
        written = run_request(ExportRequest(str(folder.path), dataset, str(Path(target).resolve()), step))
        print(json.dumps({"folder": written}) if as_json else written)


def list_checkpoints(run_id: str, verify: bool, upload: bool, as_json: bool) -> None:
    """`drivetrain checkpoints`."""
    with errors():
        folder, _ = _begun(run_id)
        if upload:
            _upload(folder)
        found = list(describe_all(folder.checkpoints, verify))
        if as_json:
            for checkpoint in found:
                print(json.dumps(asdict(checkpoint)))
        elif found:
            rows = []
            for checkpoint in found:
                metrics = ", ".join(f"{name} {value:.4g}" for name, value in checkpoint.metrics.items())
                loss = "" if checkpoint.eval_loss is None else f"{checkpoint.eval_loss:.4f}"
                state: Cell = (checkpoint.problem, RED) if checkpoint.problem else ("verified", OK) if verify else ""
                size = f"{checkpoint.bytes / 1e6:,.1f}"
                counts = (checkpoint.generation, checkpoint.world_size, checkpoint.zero_stage)
                rows.append((str(checkpoint.step), size, *map(str, counts), loss, metrics, state))
            print_table(_COLUMNS, rows)
        else:
            print("no checkpoint yet")
        if any(checkpoint.problem for checkpoint in found):
            raise typer.Exit(FAILED)


def _upload(folder: RunFolder) -> None:
    spec = folder.train_job().checkpoint
    if not spec.location:
        raise InputError("--upload", "a run without checkpoint.location", "a run whose job has one")
    remote = RemoteCheckpoints(folder, spec)
    try:
        uploaded = remote.sync()
    except OSError as error:
        raise CheckpointError(f"the upload to {spec.location} fails: {error}") from error
    for checkpoint in uploaded:
        print(f"uploaded {remote.url(checkpoint)}", file=sys.stderr)


def _begun(run_id: str) -> tuple[RunFolder, str]:
    """Return folder and dataset of a local run that has begun to train."""
    with LocalRuns() as local:
        return begun(Home.from_environment(), local.record(run_id, ONLY_LOCAL))
