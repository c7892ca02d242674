"""The verbs. Exit codes: 0 done, 1 the run failed, 2 wrong input, 130 cancelled."""

from __future__ import annotations

import json

import typer
from drivetrain_pipelines.errors import InputError
from drivetrain_workers.generate_request import GenerateRequest, generate_in_subprocess

from drivetrain import api
from drivetrain.cli.errors import errors
from drivetrain.cli.render import Renderer, renderer
from drivetrain.home import Home
from drivetrain.runs.store import RunStore


def run_job(job: str, overrides: list[str], as_json: bool, address: str | None) -> None:
    """`drivetrain run`."""
    with errors(), renderer(as_json) as out:
        _finish(api.run(job, overrides, address, out.show), out)


def resume_run(run_id: str, as_json: bool, address: str | None) -> None:
    """`drivetrain resume`."""
    with errors(), renderer(as_json) as out:
        _finish(api.resume(run_id, address, out.show), out)


def validate_job(job: str, overrides: list[str]) -> None:
    """`drivetrain validate`."""
    with errors():
        spec = api.validate(job, overrides).spec
        length = f"{spec.training.steps} steps" if spec.training.steps else f"{spec.training.epochs:g} epochs"
        print(f"{spec.name}: valid ({length}, {spec.resources.workers} workers, ZeRO {spec.training.zero})")


def predict_text(run_id: str, prompt: str, max_tokens: int, temperature: float, seed: int) -> None:
    """`drivetrain predict`."""
    with errors():
        home = Home.from_environment()
        record = RunStore(home.database_url).get(run_id)
        if "dataset" not in record.facts:
            raise InputError("RUN", repr(run_id), "a run that has begun to train", "This one has prepared no data yet.")
        request = GenerateRequest(
            str(home.run(record.id).path), record.facts["dataset"], prompt, max_tokens, temperature, seed=seed
        )
        print(generate_in_subprocess(request))


def list_runs(as_json: bool) -> None:
    """`drivetrain list`."""
    with errors():
        for record in RunStore(Home.from_environment().database_url).runs():
            line = {
                "run_id": record.id,
                "phase": record.state.phase,
                "step": record.state.progress.step,
                "reason": record.facts.get("reason", ""),
            }
            print(json.dumps(line) if as_json else "{run_id:40} {phase:10} {step:>7} {reason}".format(**line))


def _finish(summary: api.RunSummary, out: Renderer) -> None:
    out.summary(summary)
    if not summary.succeeded:
        raise typer.Exit(130 if summary.reason == "cancelled" else 1)
