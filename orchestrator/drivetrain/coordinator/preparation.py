"""What a run does before and after training: prepare the data, complete the records."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import ray
from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.prepare.prepare import prepare
from drivetrain_pipelines.storage.checksums import atomic_write
from drivetrain_workers.checkpoints.remote import RemoteCheckpoints
from drivetrain_workers.checkpoints.store import committed, describe_all
from drivetrain_workers.errors import CheckpointError
from drivetrain_workers.model_processes.requests import AssessRequest, ExportRequest, PredictRequest, Request, ask
from drivetrain_workers.records.run_folder import RunFolder

from drivetrain.accounting.budget import History, overspent, since_resumed
from drivetrain.accounting.picture import draw_goodput
from drivetrain.accounting.statement import account_of, joules_since
from drivetrain.cluster.devices import room_for
from drivetrain.cluster.gang import Agent
from drivetrain.home import Home
from drivetrain.job.files import with_files
from drivetrain.job.spec import BudgetSpec, JobSpec
from drivetrain.planning.forecast import forecast
from drivetrain.planning.plan import chosen
from drivetrain.runs.store import RunStore
from drivetrain.tracking.curves import draw_loss
from drivetrain.tracking.spool import Record
from drivetrain.tracking.tracker import Tracker

_log = logging.getLogger(__name__)
_UPLOAD_S = 600.0


class Stages:
    """The stages of one run.

    Args:
        spec: the resolved job.
        home: where datasets and downloads are.
        folder: of the run.
        tracker: of the run.
        gpus_per_worker: as fixed when the run began.
    """

    def __init__(self, spec: JobSpec, home: Home, folder: RunFolder, tracker: Tracker, gpus_per_worker: int) -> None:
        self._spec, self._home, self._tracker = spec, home, tracker
        self._gpus_per_worker = gpus_per_worker
        self.folder = folder

    def prepare(self, on_progress: Callable[[int, int, str], None]) -> tuple[str, dict[str, Any]]:
        """Make or find the dataset; returns its folder and what is known of it.

        Raises:
            PrepareError: as `drivetrain_pipelines.prepare.prepare`.
        """
        resolved = with_files(self._spec, self._home)
        if resolved != self._spec:
            self._resolve(resolved)
        data = self._spec.data
        prepared = prepare(
            data,
            data.location or str(self._home.datasets),
            self._home.downloads,
            self.folder.code,
            self._spec.resources.preprocessors,
            on_progress,
        )
        columns = set(prepared.manifest.schema.names)
        if self._spec.standard_baseline and not {"label", "tokens"} & columns:
            raise InputError("baseline", "true, for data without labels", "baseline: {function: module:function}")
        manifest, location = prepared.manifest, prepared.folder.location
        self._tracker.dataset(data.name, manifest.version, location)
        self._tracker.tags(dataset_version=manifest.version, skipped_records=int(manifest.statistics["skipped"]))
        facts = {
            "dataset": location,
            "dataset_version": manifest.version,
            "dataset_made": prepared.made,
            "train_samples": manifest.rows("train"),
            "eval_samples": manifest.rows("eval"),
            "counted_in": "tokens" if "tokens" in columns else "samples",
            "unigram_entropy": None if "label" in columns else manifest.statistics.get("unigram_entropy"),
            "skipped_records": int(manifest.statistics["skipped"]),
            "skipped_first": manifest.skipped,
        }
        if self._spec.training.open_settings:
            facts["plan"] = self._choose(location)
        return location, facts

    def _choose(self, location: str) -> dict[str, Any]:
        """Have the plan choose what the job leaves to it, and keep that as if the job had said so."""
        workers = self._spec.resources.min_workers  # with more of them each needs less
        room = room_for(workers, self._spec.resources.cpus_per_worker, self._gpus_per_worker)
        found = chosen(forecast(self._spec, self.folder.code, location, room, self._home))
        settings = {name: found[name] for name in ("zero", "micro_batch_size")}
        training = self._spec.training.model_copy(update=settings)
        self._resolve(self._spec.model_copy(update={"training": training}))
        self._tracker.params({f"plan.{name}": value for name, value in found.items()})
        self._tracker.artifact(self.folder.job_resolved)
        return found

    def _resolve(self, spec: JobSpec) -> None:
        """Keep a job that is resolved further as if it had been submitted so."""
        self._spec = spec
        with atomic_write(self.folder.job_resolved) as sink:
            sink.write(spec.model_dump_json(indent=2).encode())

    def conclude(self, agents: list[Agent], dataset: str, entropy: float | None) -> dict[str, Any]:
        """Draw the curves, generate the sample, assess the model, log all; returns the facts of the summary.

        Raises:
            CheckpointError: the model could not be exported.
        """
        records = [record for record in self._tracker.records() if record["op"] == "metrics"]
        picture = self.folder.path / "loss.png"
        draw_loss(records, entropy, self._spec.name, picture)
        self._tracker.artifact(picture)
        checkpoint = committed(self.folder.checkpoints)[0].folder(self.folder.checkpoints)
        facts = {
            "checkpoint": str(checkpoint),
            "train_loss": _last(records, "loss"),
            "eval_loss": _last(records, "eval_loss"),
            "metrics": _last_metrics(records),
            "tokens_per_s": _mean(records, "tokens_per_s"),
            "step_s": median(_values(records, "step_s") or [0.0]),
            "picture": str(picture),
        }
        if problem := self.finish_uploads(agents, _UPLOAD_S):
            facts["problem"] = problem
        if sample := self._spec.sample:
            self._try("sample", facts, lambda: self._sample(agents, dataset, sample.prompt))
        if self._spec.assessed:
            self._try("assessment", facts, lambda: self._assess(agents, dataset, facts))
        if name := self._spec.tracking.register_as:
            target = self.folder.path / "export"
            ask(ExportRequest(str(self.folder.path), dataset, str(target)))
            self._tracker.register(name, target)
        return facts

    def _try(self, name: str, facts: dict[str, Any], make: Callable[[], Any]) -> None:
        """Add what the trained model is good for to the facts; what fails there takes nothing else along."""
        try:
            facts[name] = make()
        except (CheckpointError, InputError, ray.exceptions.RayError) as error:
            cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
            facts["problem"] = f"the model is trained, but there is no {name}: {cause}"

    def _sample(self, agents: list[Agent], dataset: str, prompt: str) -> str:
        request = PredictRequest(str(self.folder.path), dataset, [prompt], str(self.folder.path))
        said = str(json.loads(_ask(agents, request))[0]["text"])
        target = self.folder.path / "sample.txt"
        target.write_text(said)
        self._tracker.artifact(target)
        return said

    def _assess(self, agents: list[Agent], dataset: str, facts: dict[str, Any]) -> dict[str, Any]:
        metrics = {**facts["metrics"], **({} if facts["eval_loss"] is None else {"loss": facts["eval_loss"]})}
        found: dict[str, Any] = json.loads(_ask(agents, AssessRequest(str(self.folder.path), dataset, metrics)))
        baseline = found.get("baseline", {"scores": {}})
        values = {f"assessment/{name}": value for name, value in found["scores"].items()}
        values |= {f"baseline/{name}": value for name, value in baseline["scores"].items()}
        self._tracker.metrics("assessment", self._tracker.newest_step("train") or 1, time.time(), values)
        if "winner" in baseline:
            self._tracker.tags(baseline=baseline["name"], winner=baseline["winner"])
        for path in sorted(self.folder.assessment.iterdir()):
            self._tracker.artifact(path, "assessment")
        return found

    def overspent(self, history: Callable[[], History], energy_j: float) -> str:
        """See `drivetrain.accounting.budget.overspent`; ``energy_j`` since the run was submitted or resumed."""
        if self._spec.budget == BudgetSpec():
            return ""
        return overspent(self._spec, since_resumed(history()), energy_j, time.time())

    def energy_since_resumed(self, history: History) -> float:
        """Joules that were logged since the run was submitted or resumed."""
        began = since_resumed(history)[:1]
        return joules_since(self._tracker.records(), began[0][0] if began else 0.0)

    def log_checkpoints(self) -> None:
        """Log the checkpoints that the run has kept."""
        for found in reversed([*describe_all(self.folder.checkpoints, verify_bytes=False)]):
            if not found.problem:
                loss = {} if found.eval_loss is None else {"eval_loss": found.eval_loss}
                metrics = {f"eval_{name}": value for name, value in found.metrics.items()}
                self._tracker.checkpoint(found.step, found.folder, {**loss, **metrics})

    def account(self, store: RunStore) -> dict[str, Any]:
        """Draw up the account of the run at its end, and log it; returns the facts of the summary."""
        found, now = account_of(self._home, store, self.folder.path.name), time.time()
        self._tracker.metrics("account", int(found.goodput.wall_s), now, found.metrics())
        picture = self.folder.path / "goodput.png"
        draw_goodput(found.goodput, self._spec.name, picture)
        self._tracker.artifact(picture)
        return {"account": found.to_json()}

    def finish_uploads(self, agents: list[Agent], timeout_s: float) -> str:
        """Wait for the upload of the last checkpoints; says what is missing, and what to do about it."""
        location = self._spec.checkpoint.location
        if not location:
            return ""
        try:
            if not agents:
                RemoteCheckpoints(self.folder, self._spec.checkpoint).sync()
                return ""
            # They have those files on their node.
            if ray.get(agents[0].handle.finish_uploads.remote(timeout_s), timeout=timeout_s + 10):
                return ""
        except (OSError, ray.exceptions.RayError) as error:
            _log.warning("uploading to %s: %s", location, error)
        upload = f"drivetrain checkpoints {self.folder.path.name} --upload"
        return f"{location} lacks checkpoints of this run; `{upload}` uploads them"


def _ask(agents: list[Agent], request: Request) -> str:
    """On the gang's node where it still is; after a crash, here."""
    return ray.get(agents[0].handle.ask.remote(request)) if agents else ask(request)


def _values(records: list[Record], key: str) -> list[float]:
    return [record["values"][key] for record in records if key in record["values"]]


def _last(records: list[Record], key: str) -> float | None:
    return next(reversed(_values(records, key)), None)


def _last_metrics(records: list[Record]) -> dict[str, float]:
    """The job's own metrics at the last evaluation, by the names that the job gives them."""
    values: dict[str, float] = next((r["values"] for r in reversed(records) if r["series"] == "eval"), {})
    return {name.removeprefix("eval_"): value for name, value in values.items() if name != "eval_loss"}


def _mean(records: list[Record], key: str) -> float | None:
    values = _values(records, key)
    return sum(values) / len(values) if values else None
