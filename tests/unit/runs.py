"""A home with hand-written runs, for tests: the records of runs, without Ray."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from drivetrain.home import Home
from drivetrain.job.spec import JobSpec
from drivetrain.runs.states import (
    Allocation,
    Ended,
    Placing,
    Preparing,
    Progress,
    Queued,
    Ready,
    Starting,
    State,
    Training,
)
from drivetrain.runs.store import RunStore
from drivetrain.tracking.spool import Spool
from drivetrain.tracking.totals import Record
from drivetrain_pipelines.prepare.facts import settle
from drivetrain_pipelines.prepare.origins import tasks_of
from drivetrain_pipelines.prepare.prepare import DatasetVersion, parts_folder, training_chunks
from drivetrain_pipelines.prepare.preprocessor import Preprocessor
from drivetrain_pipelines.spec import DataSpec
from drivetrain_workers.model_processes.requests import Request
from drivetrain_workers.protocol.reasons import Reason
from drivetrain_workers.records import ledger
from drivetrain_workers.records.run_folder import CheckpointId, RunFolder
from drivetrain_workers.records.step_times import StepTimes

from tests.unit.checkpoint_files import make_checkpoint
from tests.unit.step_records import step_record

TOY: dict[str, Any] = {
    "name": "toy",
    "data": {"name": "numbers", "source": "numbers.csv", "columns": ["x", "label"], "eval_fraction": 0.2},
    "model": {"factory": "model:make"},
    "training": {"steps": 4, "global_batch_size": 8},
}
PLACE = Allocation((("node-a", 2),), 1000.0)


def home_in(folder: Path, patch: pytest.MonkeyPatch) -> Home:
    """Make this folder the home of the process, regardless of the environment."""
    patch.setenv("DRIVETRAIN_HOME", str(folder))
    for name in ("DRIVETRAIN_DATABASE_URL", "DRIVETRAIN_SERVER", "DRIVETRAIN_TOKEN", "MLFLOW_TRACKING_URI"):
        patch.delenv(name, raising=False)
    return Home.from_environment()


def job(**sections: Any) -> JobSpec:
    """Return the job `TOY`, with these sections changed."""
    changed = {
        name: {**TOY[name], **value} if isinstance(TOY.get(name), dict) else value for name, value in sections.items()
    }
    return JobSpec.model_validate({**TOY, **changed})


def write_numbers(path: Path, rows: int = 200) -> Path:
    """Write a table of numbers whose label says whether x is odd."""
    path.write_text("x,label\n" + "".join(f"{row},{row % 2}\n" for row in range(rows)))
    return path


def prepare_shards(spec: DataSpec, home: Home, code: Path, actors: int = 1, seed: int | None = None) -> None:
    """Do the work of preprocessing actors: then only the manifest is missing, which needs no Ray.

    Args:
        seed: the work is done in a random order.
    """
    version = DatasetVersion.of(spec, spec.location or str(home.datasets), home.downloads, code)
    tasks = tasks_of(spec, version.origins.every)
    pool = [Preprocessor(spec, version.folder, code, parts_folder(spec, tasks)) for _ in range(actors)]
    if spec.kind == "tokens":
        pool[-1].make_tokenizer(training_chunks(tasks))
    order = random.Random(seed)
    parts = {}
    for task in order.sample(tasks, len(tasks)) if seed is not None else tasks:
        parts[task.number] = order.choice(pool).write_part(task)
    facts = settle(spec, tasks, [parts[task.number] for task in tasks])
    for group in order.sample(facts.groups, len(facts.groups)) if seed is not None else facts.groups:
        order.choice(pool).write_shards(group, facts.conversion)


def make_run(
    home: Home, run: str, spec: JobSpec | None = None, user: str = "ann", fingerprint: str = "fingerprint", **facts: Any
) -> RunFolder:
    """Write the folder and the record of a run that was submitted and has not started."""
    folder, spec = home.run(run), spec or job()
    folder.code.mkdir(parents=True)
    (folder.code / "model.py").write_text("def make(): ...\n")
    folder.job_written.write_text("name: toy\n")
    folder.job_resolved.write_text(spec.model_dump_json(indent=2))
    folder.environment.write_text(json.dumps({"python": "3.12.0"}))
    folder.uncommitted.write_text("")
    RunStore(home.database_url).create(run, fingerprint, Queued(), user, **facts)
    return folder


def log(folder: RunFolder, records: Sequence[Record]) -> None:
    """Append to the spool of a run."""
    spool = Spool(folder.spool)
    for record in records:
        spool.append(record)
    spool.close()


def metrics(series: str, step: int, **values: float) -> Record:
    """Return the record of metrics of one step."""
    return {"op": "metrics", "series": series, "step": step, "time_ms": 1000 * step, "values": values}


def train(home: Home, run: str, steps: int = 4, reason: Reason = Reason.COMPLETED, **facts: Any) -> None:
    """Write all records of a run with this many steps: transitions, ledger, checkpoint, step times, metrics, facts."""
    folder, store = home.run(run), RunStore(home.database_url)
    progress = Progress(generation=1, step=steps, committed_step=steps)
    states: list[State] = [
        Preparing(),
        Ready("numbers"),
        Placing("numbers", PLACE),
        Starting("numbers", PLACE, progress=Progress(generation=1)),
        Training("numbers", PLACE, progress=Progress(generation=1)),
        Ended(reason, progress=progress),
    ]
    for state in states:
        store.save(run, state, f"to {state.phase}")
    make_checkpoint(folder.path, CheckpointId(steps, 1), 2)
    ledger.write(folder.ledger, CheckpointId(steps, 1), [step_record(step + 1) for step in range(steps)])
    times = StepTimes(folder.step_times, 1)
    for step in range(1, steps + 1):
        times.enter("compute")
        times.end_iteration(step, 0.0)
    times.close()
    log(
        folder, [metrics("train", step, loss=1.0 / step, step_s=0.5, tokens_per_s=64.0) for step in range(1, steps + 1)]
    )
    log(folder, [metrics("eval", steps, eval_loss=0.5, eval_accuracy=0.75)])
    known = {"dataset": "numbers", "dataset_version": "v1", "train_loss": 1.0 / steps, "eval_loss": 0.5}
    ended = {"reason": str(reason), "released": True}
    store.update_facts(run, **{**known, **ended, **facts})


@dataclass
class Agent:
    """An agent handle with predefined answers."""

    answers: dict[type[Request], str | Exception] = field(default_factory=dict)
    uploaded: bool | Exception = True
    requests: list[Request] = field(default_factory=list)
    waited_s: list[float] = field(default_factory=list)

    def run_request(self, request: Request) -> str:
        """See `AgentHandle`."""
        self.requests.append(request)
        return _given(self.answers[type(request)])

    def finish_uploads(self, timeout_s: float) -> bool:
        """See `AgentHandle`."""
        self.waited_s.append(timeout_s)
        return _given(self.uploaded)


def _given(answer: Any) -> Any:
    if isinstance(answer, Exception):
        raise answer
    return answer
