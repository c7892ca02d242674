"""The MLflow calls that a run needs. Every call is idempotent."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from drivetrain_pipelines.storage.proxies import reach_loopback_directly
from mlflow import MlflowClient
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag, LoggedModelStatus
from mlflow.exceptions import MlflowException

from drivetrain.tracking.destination import DeletedError, Shipment, UnavailableError
from drivetrain.tracking.mlflow_entries import Entry, check, entries_of, kept_value, log, renamed
from drivetrain.tracking.mlflow_errors import is_outage, is_refusal, reason_of
from drivetrain.tracking.mlflow_lookup import RUN_TAG, Wanted, deleted, find_or_create, is_deleted
from drivetrain.tracking.mlflow_names import accepted_file, accepted_name
from drivetrain.tracking.totals import Record

_MODEL = "model"  # folder of artifacts
_REQUEST_ENTRIES = 1000  # MLflow's limit of metrics in a request
_MAX_LATE = 20  # single failures in one call; more are the server's own


class MlflowRun:
    """One MLflow run, found by its id or its tag, or created.

    Args:
        uri: tracking URI.
        wanted: the run.

    Raises:
        DeletedError: it was deleted.
        UnavailableError: the server or the database does not accept it at present.
    """

    def __init__(self, uri: str, wanted: Wanted) -> None:
        # The tracker retries failed requests; the spool keeps the records.
        os.environ |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
        reach_loopback_directly()  # MLflow's client would ask a proxy for a server on this machine
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
        self._uri, self._name = uri, wanted.name
        try:
            self._client = MlflowClient(uri)
            info = find_or_create(self._client, wanted).info
        except DeletedError:
            raise
        except Exception as error:  # of the server, the database or its driver
            raise UnavailableError(reason_of(error, uri)) from error
        self.experiment_id: str = info.experiment_id
        self.run_id: str = info.run_id
        self._operations: dict[str, Callable[[Record], None]] = {
            "begin": self._begin,
            "dataset": self._dataset,
            "artifact": self._artifact,
            "checkpoint": self._checkpoint,
            "register": self._register,
            "end": self._end,
        }
        self.identity = {"mlflow_uri": uri, "mlflow_experiment": wanted.experiment, "mlflow_run_id": self.run_id}
        self._late: dict[int, str] = {}
        self._refused: dict[str, str] = {}
        self._renamed: dict[str, str] = {}

    def ship(self, records: Sequence[Record]) -> Shipment:
        """Log records in order, with adjacent metrics, parameters and tags in one request; see `Destination`."""
        self._late, self._refused, self._renamed = {}, {}, {}
        entries: list[Entry] = []
        for number, record in enumerate(records):
            if record["op"] in ("metrics", "params", "tags"):
                entries += self._accepted(number, record)
                continue
            self._log_all(entries)
            entries = []
            self._operate(number, record)
        self._log_all(entries)
        return Shipment(self._late, self._refused, self._renamed)

    def _accepted(self, number: int, record: Record) -> list[Entry]:
        """Return the entries of a record that MLflow can accept, and note the others."""
        entries = []
        for entry in entries_of(number, record):
            try:
                check(entry)
            except Exception as error:
                self._refused[entry.name] = reason_of(error)
                continue
            if entry.change:
                self._renamed[entry.name] = entry.change
            entries.append(entry)
        return entries

    def _log_all(self, entries: Sequence[Entry]) -> None:
        for start in range(0, len(entries), _REQUEST_ENTRIES):
            self._log(entries[start : start + _REQUEST_ENTRIES])

    def _log(self, entries: Sequence[Entry]) -> None:
        """Log entries; halve them until what MLflow does not accept is alone."""
        try:
            log(self._client, self.run_id, entries)
        except Exception as error:
            if is_outage(error):
                raise UnavailableError(reason_of(error, self._uri)) from error
            self._check_server(error)
            if len(entries) == 1:
                kept = kept_value(self._client, self.run_id, entries[0])
                reason = ValueError(f"MLflow keeps its first value, {kept!r}") if kept is not None else error
                self._note(entries[0].number, entries[0].name, reason, is_refusal(reason))
                return
            half = len(entries) // 2
            self._log(entries[:half])
            self._log(entries[half:])

    def _operate(self, number: int, record: Record) -> None:
        name = " ".join([record["op"], *(str(record[key]) for key in ("path", "name", "step") if key in record)])
        if record["op"] not in self._operations:
            self._refused[name] = "this version does not know it"
            return
        try:
            self._operations[record["op"]](record)
        except Exception as error:
            self._check_server(error)
            self._note(number, name, error, is_refusal(error) or isinstance(error, _LostFileError))

    def _check_server(self, error: Exception) -> None:
        """Write something that MLflow has already accepted, to separate the server's problems from those of a record.

        Raises:
            DeletedError: the run was deleted.
            UnavailableError: the server does not accept this either.
        """
        try:
            self._client.set_tag(self.run_id, RUN_TAG, self._name)
        except Exception as again:
            if is_deleted(self._client, self.run_id):
                raise deleted(self._name) from again
            raise UnavailableError(reason_of(again, self._uri)) from error

    def _note(self, number: int, name: str, error: Exception, permanent: bool) -> None:
        if permanent:
            self._refused[name] = reason_of(error)
            return
        self._late[number] = f"{name}: {reason_of(error)}"
        if len(self._late) > _MAX_LATE:
            raise UnavailableError(reason_of(error, self._uri)) from error

    def _dataset(self, record: Record) -> None:
        source: Any = resolve_dataset_source(record["folder"])
        dataset = MetaDataset(source, name=record["name"], digest=record["version"])  # type: ignore[abstract]  # it has it
        entry = DatasetInput(dataset._to_mlflow_entity(), [InputTag("mlflow.data.context", "training")])
        self._client.log_inputs(self.run_id, [entry])

    def _artifact(self, record: Record) -> None:
        path, folder = Path(record["path"]), record.get("folder")
        _check_file(path)
        target = folder and "/".join(map(accepted_file, folder.split("/")))
        name = accepted_file(path.name)
        if change := renamed(f"{folder}/{path.name}", f"{target}/{name}"):
            self._renamed[f"artifact {path}"] = change
        with TemporaryDirectory(prefix="drivetrain-artifact-") as made:
            if name != path.name:
                path = Path(made, name)
                path.symlink_to(Path(record["path"]).absolute())
            self._client.log_artifact(self.run_id, str(path), target)

    def _checkpoint(self, record: Record) -> None:
        """Create a logged model for a checkpoint, once."""
        name, step = f"step-{record['step']:08}", record["step"]
        named = self._client.search_logged_models([self.experiment_id], filter_string=f"name = '{name}'")
        own = [model for model in named if model.source_run_id == self.run_id]
        if any(model.status == LoggedModelStatus.READY for model in own):
            return
        tags = {"step": str(step), "location": record["location"]}
        options: dict[str, Any] = {"source_run_id": self.run_id, "tags": tags, "model_type": "checkpoint"}
        model = own[0] if own else self._client.create_logged_model(self.experiment_id, name, **options)
        for key, value in record["values"].items():
            name = f"checkpoint_{key}"
            if change := renamed(name, accepted := accepted_name(name)):
                self._renamed[f"metric {name}"] = change
            at = {"timestamp": record["time_ms"], "step": step, "model_id": model.model_id}
            self._client.log_metric(self.run_id, accepted, value, **at)
        self._client.finalize_logged_model(model.model_id, "READY")

    def _register(self, record: Record) -> None:
        name = record["name"]
        if self._client.search_model_versions(f"name = '{name}' and run_id = '{self.run_id}'"):
            return
        for path in sorted(Path(record["folder"]).rglob("*")) or [Path(record["folder"], "*")]:
            _check_file(path)
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


class _LostFileError(Exception):
    """A file that was to be sent is not there any more."""


def _check_file(path: str | Path) -> None:
    """Raise `_LostFileError` for a file that cannot be read: errors of the artifact store look the same otherwise."""
    try:
        if not Path(path).is_dir():
            Path(path).open("rb").close()
    except OSError as error:
        raise _LostFileError(f"the file cannot be read: {error.strerror}") from error
