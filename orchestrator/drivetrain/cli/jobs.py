"""`drivetrain run` and `drivetrain validate`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from drivetrain_workers.model_processes.requests import Trial

from drivetrain.api import runs
from drivetrain.cli.errors import errors, exit_as
from drivetrain.cli.render import renderer
from drivetrain.cli.words import plural


def run_job(job: str, overrides: list[str], as_json: bool, address: str | None) -> None:
    """`drivetrain run`."""
    with errors(), renderer(as_json) as out:
        if (stopped := runs.cancelled_run(job, overrides)) and not as_json:
            step = stopped.state.progress.committed_step
            print(f"a run of this job was cancelled; to resume it at step {step}:", file=sys.stderr)
            print(f"drivetrain resume {stopped.id}", file=sys.stderr)
        summary = runs.run(job, overrides, address, out.show)
        out.summary(summary)
        exit_as(summary.reason)


def validate_job(job: str, overrides: list[str], try_it: bool, as_json: bool) -> None:
    """`drivetrain validate`."""
    with errors():
        checked = runs.validate(job, overrides, try_it)
        spec, code, trial = checked.spec, checked.code, checked.trial
        if as_json:
            left_out = {name: str(why) for name, why in code.left_out.items()}
            of_code = {"version": code.version, "files": [*code.contents], "left_out": left_out}
            answer = {"valid": True, "job": spec.model_dump(mode="json"), "code": of_code}
            print(json.dumps(answer | ({"trial": asdict(trial)} if trial else {})))
            return
        training = spec.training
        length = plural(training.steps, "step") if training.steps else f"{training.epochs:g} epochs"
        least, most = spec.resources.min_workers, spec.resources.max_workers
        workers = plural(most, "worker") if least == most else f"{least} to {plural(most, 'worker')}"
        print(f"{spec.name}: valid ({length}, {workers}, ZeRO {training.zero_stage})")
        print(f"code: {code.summary()}")
        if trial:
            _show(trial)


def _show(trial: Trial) -> None:
    print(f"data: {plural(trial.records, 'record')} read, {plural(trial.samples, 'sample')} made of them")
    if trial.skipped:
        print(f"      {plural(len(trial.skipped), 'bad record')} skipped, the first: {trial.skipped[0]}")
    print(f"model: {trial.parameters:,} trained parameters")
    print(f"step: loss {trial.loss:.4g} with {plural(trial.rows, 'sample')}")
    metrics = "".join(f", {name} {value:.4g}" for name, value in trial.metrics.items())
    print(f"evaluation: loss {trial.eval_loss:.4g}{metrics}")
    print(f"tried on {'a GPU' if trial.device == 'cuda' else 'the CPU'} in {trial.seconds:.1f} s")
