"""The verbs. Exit codes: 0 done, 1 the run failed, 2 wrong input, 130 cancelled."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from drivetrain_pipelines.errors import InputError
from drivetrain_workers.checkpoints.remote import RemoteCheckpoints
from drivetrain_workers.checkpoints.store import describe_all
from drivetrain_workers.errors import CheckpointError
from drivetrain_workers.model_processes import requests
from drivetrain_workers.model_processes.requests import ExportRequest, PredictRequest, run_request
from drivetrain_workers.records.run_folder import RunFolder

from drivetrain.api import runs
from drivetrain.cli.errors import errors
from drivetrain.cli.paging import first
from drivetrain.cli.render import Renderer, renderer
from drivetrain.home import Home
from drivetrain.reporting.report import write_report
from drivetrain.runs.store import RunStore


def run_job(job: str, overrides: list[str], as_json: bool, address: str | None) -> None:
    """`drivetrain run`."""
    with errors(), renderer(as_json) as out:
        _finish(runs.run(job, overrides, address, out.show), out)


def resume_run(run_id: str, as_json: bool, address: str | None) -> None:
    """`drivetrain resume`."""
    with errors(), renderer(as_json) as out:
        _finish(runs.resume(run_id, address, out.show), out)


def validate_job(job: str, overrides: list[str]) -> None:
    """`drivetrain validate`."""
    with errors():
        spec = runs.validate(job, overrides).spec
        length = f"{spec.training.steps} steps" if spec.training.steps else f"{spec.training.epochs:g} epochs"
        least, most = spec.resources.min_workers, spec.resources.max_workers
        workers = str(most) if least == most else f"{least} to {most}"
        print(f"{spec.name}: valid ({length}, {workers} workers, ZeRO {spec.training.zero})")


def predict(
    run_id: str,
    inputs: list[str],
    max_tokens: int | None,
    temperature: float | None,
    seed: int,
    pictures: str,
    as_json: bool,
) -> None:
    """`drivetrain predict`."""
    with errors():
        folder, dataset = _begun(run_id)
        request = PredictRequest(str(folder.path), dataset, inputs, pictures, max_tokens, temperature, seed=seed)
        for row in requests.predict(request):
            if as_json:
                print(json.dumps(row, ensure_ascii=False))
            elif row.keys() == {"input", "text"}:
                print(row["text"])
            else:
                said = (f"{name} {_rounded(value)}" for name, value in row.items() if name != "input")
                print(f"{row['input']}: {', '.join(said)}")


def export_model(run_id: str, target: str, step: int | None) -> None:
    """`drivetrain export`."""
    with errors():
        if Path(target).is_file():
            raise InputError("--to", repr(target), "a folder, or a name that is not taken")
        folder, dataset = _begun(run_id)
        print(run_request(ExportRequest(str(folder.path), dataset, str(Path(target).resolve()), step)))


def list_checkpoints(run_id: str, verify: bool, upload: bool, as_json: bool) -> None:
    """`drivetrain checkpoints`."""
    with errors():
        folder, _ = _begun(run_id)
        if upload:
            _upload(folder)
        found = list(describe_all(folder.checkpoints, verify))
        for checkpoint in found:
            if as_json:
                print(json.dumps(asdict(checkpoint)))
                continue
            loss = "" if checkpoint.eval_loss is None else f"eval loss {checkpoint.eval_loss:.4f}"
            loss += "".join(f"  {name} {value:.4g}" for name, value in checkpoint.metrics.items())
            state = checkpoint.problem or ("every byte is what was written" if verify else "")
            made = f"generation {checkpoint.generation}, {checkpoint.world_size} ranks, ZeRO {checkpoint.zero_stage}"
            print(
                f"step {checkpoint.step:>8}  {checkpoint.bytes / 1e6:>10,.1f} MB  {made}  {loss:18}  {state}".rstrip()
            )
        if not found:
            print("no checkpoint yet")
        if any(checkpoint.problem for checkpoint in found):
            raise typer.Exit(1)


def _upload(folder: RunFolder) -> None:
    spec = folder.train_job().checkpoint
    if not spec.location:
        raise InputError("--upload", "a run without checkpoint.location", "a run whose job has one")
    remote = RemoteCheckpoints(folder, spec)
    try:
        uploaded = remote.sync()
    except OSError as error:
        raise CheckpointError(f"{spec.location} does not take them: {error}") from error
    for checkpoint in uploaded:
        print(f"uploaded {remote.url(checkpoint)}", file=sys.stderr)


def _rounded(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_rounded, value)) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _begun(run_id: str) -> tuple[RunFolder, str]:
    """Folder and dataset of a run that has begun to train."""
    home = Home.from_environment()
    record = RunStore(home.database_url).get(run_id)
    if record.facts.dataset is None:
        raise InputError("RUN", repr(run_id), "a run that has begun to train", "This one has prepared no data yet.")
    return home.run(record.id), record.facts.dataset


def list_runs(limit: int | None, as_json: bool) -> None:
    """`drivetrain list`."""
    with errors():
        for record in first(RunStore(Home.from_environment().database_url).iterate(), limit):
            line = {
                "run_id": record.id,
                "phase": record.state.phase,
                "step": record.state.progress.step,
                "reason": record.facts.reason,
            }
            print(json.dumps(line) if as_json else "{run_id:40} {phase:10} {step:>7} {reason}".format(**line))


def sync_run(run_id: str, timeout_s: float) -> None:
    """`drivetrain sync`."""
    with errors():
        runs.sync(run_id, timeout_s)
        print("MLflow has everything")


def report_run(run_id: str, target: str | None) -> None:
    """`drivetrain report`."""
    with errors():
        if target and not Path(target).absolute().parent.is_dir():
            raise InputError("--to", repr(target), "a file in a folder that is there")
        print(write_report(run_id, Path(target) if target else None))


def _finish(summary: runs.RunSummary, out: Renderer) -> None:
    out.summary(summary)
    if not summary.succeeded:
        raise typer.Exit(130 if summary.reason == "cancelled" else 1)
