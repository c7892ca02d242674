"""`drivetrain run` and `drivetrain validate`."""

from __future__ import annotations

import json
import sys

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


def validate_job(job: str, overrides: list[str], as_json: bool) -> None:
    """`drivetrain validate`."""
    with errors():
        spec = runs.validate(job, overrides).spec
        if as_json:
            print(json.dumps({"valid": True, "job": spec.model_dump(mode="json")}))
            return
        training = spec.training
        length = plural(training.steps, "step") if training.steps else f"{training.epochs:g} epochs"
        least, most = spec.resources.min_workers, spec.resources.max_workers
        workers = plural(most, "worker") if least == most else f"{least} to {plural(most, 'worker')}"
        print(f"{spec.name}: valid ({length}, {workers}, ZeRO {training.zero_stage})")
