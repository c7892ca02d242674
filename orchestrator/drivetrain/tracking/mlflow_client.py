"""The MLflow calls that a run needs. Every call is idempotent."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from drivetrain_pipelines.storage.proxies import reach_loopback_directly
from mlflow import MlflowClient
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_USER

from drivetrain.tracking.totals import Record

_RUN_TAG = "drivetrain.run"
_MODEL = "model"  # folder of artifacts
_BATCH_METRICS, _BATCH_PARAMS = 1000, 100  # MLflow's limits per request


class MlflowRun:
    """One MLflow run, found by its tag or created.

    Args:
        uri: tracking URI.
        experiment: created if it does not exist.
        artifacts: artifact root for a new experiment; None selects the server's default.
        name: of the run; also its identity.
        user: owner of the run.
        submitted: submission time, in seconds since the epoch.
    """

    def __init__(
        self, uri: str, experiment: str, artifacts: Path | None, name: str, user: str, submitted: float
    ) -> None:
        # The tracker retries failed requests; the spool keeps the records.
        os.environ |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
        reach_loopback_directly()  # MLflow's client would ask a proxy for a server on this machine
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
        self._client = MlflowClient(uri)
        found = self._client.get_experiment_by_name(experiment)
        location = artifacts.as_uri() if artifacts else None
        self.experiment_id = (
            found.experiment_id if found else self._client.create_experiment(experiment, artifact_location=location)
        )
        runs = self._client.search_runs([self.experiment_id], f"tags.`{_RUN_TAG}` = '{name}'", max_results=1)
        tags = {_RUN_TAG: name, MLFLOW_USER: user}
        run = runs[0] if runs else self._client.create_run(self.experiment_id, int(submitted * 1000), tags, name)
        self.run_id: str = run.info.run_id
        self._operations: dict[str, Callable[[Record], None]] = {
            "begin": self._begin,
            "params": self._params,
            "tags": self._tags,
            "dataset": self._dataset,
            "artifact": self._artifact,
            "checkpoint": self._checkpoint,
            "register": self._register,
            "end": self._end,
        }
        self.identity = {"mlflow_uri": uri, "mlflow_experiment": experiment, "mlflow_run_id": self.run_id}

    def ship(self, records: Iterable[Record]) -> None:
        """Log records in order, with adjacent metrics in one batch. Raises MLflow's errors."""
        metrics: list[Metric] = []
        for record in records:
            if record["op"] == "metrics":
                values = record["values"].items()
                metrics += [Metric(key, value, record["time_ms"], record["step"]) for key, value in values]
                continue
            self._log_metrics(metrics)
            metrics = []
            self._operations[record["op"]](record)
        self._log_metrics(metrics)

    def _log_metrics(self, metrics: list[Metric]) -> None:
        for start in range(0, len(metrics), _BATCH_METRICS):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + _BATCH_METRICS])

    def _params(self, record: Record) -> None:
        params = [Param(key, value) for key, value in record["values"].items()]
        for start in range(0, len(params), _BATCH_PARAMS):
            self._client.log_batch(self.run_id, params=params[start : start + _BATCH_PARAMS])

    def _tags(self, record: Record) -> None:
        self._client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in record["values"].items()])

    def _dataset(self, record: Record) -> None:
        source: Any = resolve_dataset_source(record["folder"])
        dataset = MetaDataset(source, name=record["name"], digest=record["version"])  # type: ignore[abstract]  # it has it
        entry = DatasetInput(dataset._to_mlflow_entity(), [InputTag("mlflow.data.context", "training")])
        self._client.log_inputs(self.run_id, [entry])

    def _artifact(self, record: Record) -> None:
        self._client.log_artifact(self.run_id, record["path"], record.get("folder"))

    def _checkpoint(self, record: Record) -> None:
        """Create a logged model for a checkpoint, once."""
        name, step = f"step-{record['step']:08}", record["step"]
        named = self._client.search_logged_models([self.experiment_id], filter_string=f"name = '{name}'")
        if any(model.source_run_id == self.run_id for model in named):
            return
        tags = {"step": str(step), "location": record["location"]}
        model = self._client.create_logged_model(
            self.experiment_id, name, source_run_id=self.run_id, tags=tags, model_type="checkpoint"
        )
        for key, value in record["values"].items():
            at = {"timestamp": record["time_ms"], "step": step, "model_id": model.model_id}
            self._client.log_metric(self.run_id, f"checkpoint_{key}", value, **at)
        self._client.finalize_logged_model(model.model_id, "READY")

    def _register(self, record: Record) -> None:
        name = record["name"]
        if self._client.search_model_versions(f"name = '{name}' and run_id = '{self.run_id}'"):
            return
        self._client.log_artifacts(self.run_id, record["folder"], _MODEL)
        with suppress(MlflowException):  # usually it exists; on any other error the next call fails
            self._client.create_registered_model(name)
        source = f"{self._client.get_run(self.run_id).info.artifact_uri}/{_MODEL}"
        self._client.create_model_version(name, source, self.run_id)

    def _end(self, record: Record) -> None:
        self._client.set_terminated(self.run_id, record["status"], record["time_ms"])

    def _begin(self, _: Record) -> None:
        """Set the status to RUNNING, also for a resumed run."""
        self._client.update_run(self.run_id, status="RUNNING")
