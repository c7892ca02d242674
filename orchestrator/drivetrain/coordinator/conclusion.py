"""After training: wait for uploads, draw the curves, sample and assess the model, register it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.storage.checksums import JsonObject
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
from drivetrain.tracking.curves import draw_loss
from drivetrain.tracking.totals import Record
from drivetrain.tracking.tracker import Tracker

_log = logging.getLogger(__name__)
_UPLOAD_S = 600.0


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
        """Draw the curves, generate the sample, assess the model, log all; returns the facts of the summary.

        Raises:
            CheckpointError: the model could not be exported.
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
            problem=self.finish_uploads(agents, _UPLOAD_S),
        )
        if sample := self._spec.sample:
            facts = self._try("sample", facts, lambda: self._sample(agents, dataset, sample.prompt))
        if self._spec.assessed:
            scores = metrics | ({} if eval_loss is None else {"loss": eval_loss})
            facts = self._try("assessment", facts, lambda: self._assess(agents, dataset, scores))
        if name := self._spec.tracking.register_as:
            target = self.folder.path / "export"
            run_request(ExportRequest(str(self.folder.path), dataset, str(target)))
            self._tracker.register(name, target)
        return facts

    def _try(self, name: str, facts: RunFacts, make: Callable[[], Any]) -> RunFacts:
        """Return the facts with one more, or with the problem of making it."""
        try:
            return facts.updated(**{name: make()})
        except (CheckpointError, InputError, AgentLostError) as error:
            return facts.updated(problem=f"the model is trained, but there is no {name}: {error}")

    def _sample(self, agents: Sequence[AgentHandle], dataset: str, prompt: str) -> str:
        request = PredictRequest(str(self.folder.path), dataset, [prompt], str(self.folder.path))
        said = str(json.loads(_ask(agents, request))[0]["text"])
        target = self.folder.path / "sample.txt"
        target.write_text(said)
        self._tracker.artifact(target)
        return said

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
        """Wait for the upload of the last checkpoints; says what is missing, and what to do about it."""
        location = self._spec.checkpoint.location
        if not location:
            return ""
        try:
            if not agents:
                RemoteCheckpoints(self.folder, self._spec.checkpoint).sync()
                return ""
            # They have those files on their node.
            if agents[0].finish_uploads(timeout_s):
                return ""
        except (OSError, AgentLostError) as error:
            _log.warning("uploading to %s: %s", location, error)
        upload = f"drivetrain checkpoints {self.folder.path.name} --upload"
        return f"{location} lacks checkpoints of this run; `{upload}` uploads them"


def _ask(agents: Sequence[AgentHandle], request: Request) -> str:
    """On the gang's node where it still is; after a crash, here."""
    return agents[0].run_request(request) if agents else run_request(request)


def _median(records: Iterable[Record], key: str) -> float:
    """Return the median of a metric over all records that have it; 0 where none has."""
    values: list[float] = [record["values"][key] for record in records if key in record["values"]]
    return median(values or [0.0])
