"""After training: wait for uploads, plot the losses, sample, assess and register the model."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

from drivetrain_pipelines.errors import InputError, UserCodeError
from drivetrain_pipelines.storage.json_files import JsonObject
from drivetrain_workers.checkpoints.remote import RemoteCheckpoints
from drivetrain_workers.checkpoints.store import committed
from drivetrain_workers.errors import CheckpointError
from drivetrain_workers.model_processes.requests import (
    AssessRequest,
    ExportRequest,
    PredictRequest,
    Request,
    run_request,
)
from drivetrain_workers.records.run_folder import RunFolder

from drivetrain.cluster.protocols import AgentHandle, AgentLostError
from drivetrain.job.spec import JobSpec
from drivetrain.runs.facts import RunFacts
from drivetrain.tracking.loss_plots import draw_loss
from drivetrain.tracking.totals import Record
from drivetrain.tracking.tracker import Tracker

_log = logging.getLogger(__name__)
_UPLOAD_TIMEOUT_S = 600.0


class Conclusion:
    """The conclusion of one run.

    Args:
        spec: the resolved job.
        folder: of the run.
        tracker: of the run.
    """

    def __init__(self, spec: JobSpec, folder: RunFolder, tracker: Tracker) -> None:
        self._spec, self.folder, self._tracker = spec, folder, tracker

    def conclude(self, agents: Sequence[AgentHandle], dataset: str, entropy: float | None) -> RunFacts:
        """Plot the losses, generate the sample, assess the model, log all; return the facts of the summary.

        Raises:
            CheckpointError: the model cannot be exported.
        """
        totals, picture = self._tracker.totals, self.folder.path / "loss.png"
        draw_loss(self._tracker.logged_metrics(), entropy, self._spec.name, picture)
        self._tracker.artifact(picture)
        checkpoint = committed(self.folder.checkpoints)[0].folder(self.folder.checkpoints)
        eval_loss, metrics = totals.evaluation()
        facts = RunFacts(
            checkpoint=str(checkpoint),
            train_loss=totals.newest.get("train", {}).get("loss"),
            eval_loss=eval_loss,
            metrics=metrics,
            tokens_per_s=totals.mean("tokens_per_s"),
            step_s=_median(self._tracker.logged_metrics(), "step_s"),
            picture=str(picture),
            problem=self.finish_uploads(agents, _UPLOAD_TIMEOUT_S),
        )
        if sample := self._spec.sample:
            facts = self._try("sample", facts, lambda: self._sample(agents, dataset, sample.prompt))
        if self._spec.assessed:
            scores = metrics | ({} if eval_loss is None else {"loss": eval_loss})
            facts = self._try("assessment", facts, lambda: self._assess(agents, dataset, scores))
        if name := self._spec.tracking.registered_model:
            target = self.folder.path / "export"
            run_request(ExportRequest(str(self.folder.path), dataset, str(target)))
            self._tracker.register(name, target)
        return facts

    def _try(self, name: str, facts: RunFacts, make: Callable[[], Any]) -> RunFacts:
        """Return the facts with one more fact, or with the error of computing it."""
        try:
            return facts.updated(**{name: make()})
        except (CheckpointError, InputError, UserCodeError, AgentLostError) as error:
            return facts.updated(problem=f"the model is trained, but the {name} failed: {error}")

    def _sample(self, agents: Sequence[AgentHandle], dataset: str, prompt: str) -> str:
        request = PredictRequest(str(self.folder.path), dataset, [prompt], str(self.folder.path))
        text = str(json.loads(_ask(agents, request))[0]["text"])
        target = self.folder.path / "sample.txt"
        target.write_text(text)
        self._tracker.artifact(target)
        return text

    def _assess(self, agents: Sequence[AgentHandle], dataset: str, metrics: dict[str, float]) -> JsonObject:
        found: JsonObject = json.loads(_ask(agents, AssessRequest(str(self.folder.path), dataset, metrics)))
        baseline = found.get("baseline", {"scores": {}})
        values = {f"assessment/{name}": value for name, value in found["scores"].items()}
        values |= {f"baseline/{name}": value for name, value in baseline["scores"].items()}
        self._tracker.metrics("assessment", self._tracker.newest_step("train") or 1, time.time(), values)
        if "winner" in baseline:
            self._tracker.tags(baseline=baseline["name"], winner=baseline["winner"])
        for path in sorted(self.folder.assessment.iterdir()):
            self._tracker.artifact(path, "assessment")
        return found

    def finish_uploads(self, agents: Sequence[AgentHandle], timeout_s: float) -> str:
        """Wait for the upload of the last checkpoints; describe what is missing and how to upload it."""
        location = self._spec.checkpoint.location
        if not location:
            return ""
        try:
            if not agents:
                RemoteCheckpoints(self.folder, self._spec.checkpoint).sync()
                return ""
            # The files are on the node of the agent.
            if agents[0].finish_uploads(timeout_s):
                return ""
        except (OSError, AgentLostError) as error:
            _log.warning("uploading to %s: %s", location, error)
        upload = f"drivetrain checkpoints {self.folder.path.name} --upload"
        return f"{location} lacks checkpoints of this run; `{upload}` uploads them"


def _ask(agents: Sequence[AgentHandle], request: Request) -> str:
    """Send a request to the first agent; without agents, after a crash, run it here."""
    return agents[0].run_request(request) if agents else run_request(request)


def _median(records: Iterable[Record], key: str) -> float:
    """Return the median of a metric over all records with it; 0 without one."""
    values: list[float] = [record["values"][key] for record in records if key in record["values"]]
    return median(values or [0.0])
