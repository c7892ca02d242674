"""Each record arrives in MLflow once, even if it is sent repeatedly."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from drivetrain.tracking.destination import Destination
from drivetrain.tracking.embedded import make_database
from drivetrain.tracking.mlflow_client import MlflowRun
from drivetrain.tracking.totals import Record
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tests.unit.runs import metrics

# MLflow has two classes of one name for a local folder, and either will do.
pytestmark = pytest.mark.filterwarnings("ignore:The specified dataset source can be interpreted:UserWarning")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Create an MLflow database for this module, which takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    before = dict(os.environ)
    make_database(folder / "mlflow.db", folder / "artifacts")
    yield folder
    for name in [name for name in os.environ if name not in before and name.startswith("MLFLOW_")]:
        del os.environ[name]


@pytest.fixture
def client(database: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{database / 'mlflow.db'}")


def open_run(database: Path, name: str, experiment: str = "toys", submitted: float = 1000.0) -> MlflowRun:
    uri = f"sqlite:///{database / 'mlflow.db'}"
    return MlflowRun(uri, experiment, database / "mlartifacts" / experiment, name, "ann", submitted)


def test_a_run_is_made_once_and_found_again(database: Path, client: MlflowClient) -> None:
    first = open_run(database, "made-1")
    again: Destination = open_run(database, "made-1")
    other = open_run(database, "made-2")
    assert first.identity == again.identity
    assert other.run_id != first.run_id
    assert first.identity["mlflow_run_id"] == first.run_id
    assert first.identity["mlflow_experiment"] == "toys"
    run = client.get_run(first.run_id)
    assert (run.info.run_name, run.info.start_time) == ("made-1", 1_000_000)
    assert run.data.tags["mlflow.user"] == "ann"
    assert run.data.tags["drivetrain.run"] == "made-1"


def test_everything_that_a_run_logs_arrives(database: Path, client: MlflowClient, tmp_path: Path) -> None:
    (tmp_path / "loss.png").write_bytes(b"picture")
    records: list[Record] = [
        {"op": "begin"},
        {"op": "params", "values": {f"key{number}": str(number) for number in range(250)}},
        {"op": "tags", "values": {"drivetrain.winner": "baseline"}},
        {"op": "dataset", "name": "numbers", "version": "v1", "folder": str(tmp_path)},
        *(metrics("train", step, loss=1.0 / step, step_s=0.5) for step in range(1, 601)),
        {"op": "tags", "values": {"drivetrain.winner": "network"}},
        metrics("eval", 600, eval_loss=0.25),
        {"op": "artifact", "path": str(tmp_path / "loss.png"), "folder": None},
        {"op": "artifact", "path": str(tmp_path / "loss.png"), "folder": "assessment"},
        {"op": "end", "status": "FINISHED", "time_ms": 9_000_000},
    ]
    run = open_run(database, "whole-1")
    run.ship(records)
    found = client.get_run(run.run_id)
    assert len(found.data.params) == 250
    assert found.data.params["key249"] == "249"
    assert found.data.tags["drivetrain.winner"] == "network"
    assert found.data.metrics == {"loss": 1.0 / 600, "step_s": 0.5, "eval_loss": 0.25}
    history = client.get_metric_history(run.run_id, "loss")
    assert [(each.step, each.value, each.timestamp) for each in history[:2]] == [(1, 1.0, 1000), (2, 0.5, 2000)]
    assert len(history) == 600
    (entry,) = found.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("numbers", "v1")
    assert [file.path for file in client.list_artifacts(run.run_id)] == ["assessment", "loss.png"]
    assert [file.path for file in client.list_artifacts(run.run_id, "assessment")] == ["assessment/loss.png"]
    assert (found.info.status, found.info.end_time) == ("FINISHED", 9_000_000)
    run.ship([{"op": "begin"}])
    assert client.get_run(run.run_id).info.status == "RUNNING", "it was resumed"


def test_a_record_that_is_sent_twice_is_stored_once(database: Path, client: MlflowClient, tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "model.safetensors").write_bytes(b"weights")
    records: list[Record] = [
        {"op": "params", "values": {"seed": "1"}},
        metrics("train", 1, loss=1.0),
        {"op": "dataset", "name": "numbers", "version": "v1", "folder": str(tmp_path)},
        {"op": "checkpoint", "step": 4, "location": "/runs/step-4", "values": {"eval_loss": 0.5}, "time_ms": 4000},
        {"op": "register", "name": "toy-model", "folder": str(tmp_path / "export")},
    ]
    for _ in range(2):  # also by the restarted process
        run = open_run(database, "twice-1", "twice")
        run.ship(records)
        run.ship(records)
    (version,) = client.search_model_versions("name = 'toy-model'")
    assert version.run_id == run.run_id
    assert [file.path for file in client.list_artifacts(run.run_id, "model")] == ["model/model.safetensors"]
    (model,) = client.search_logged_models([run.experiment_id])
    assert (model.name, model.source_run_id, model.status) == ("step-00000004", run.run_id, "READY")
    assert model.tags["location"] == "/runs/step-4"
    assert [(each.key, each.value, each.step) for each in model.metrics] == [("checkpoint_eval_loss", 0.5, 4)]
    assert {each.value for each in client.get_metric_history(run.run_id, "loss")} == {1.0}
    assert len(client.get_run(run.run_id).inputs.dataset_inputs) == 1
    other = open_run(database, "twice-2", "twice")
    other.ship(records)
    assert len(client.search_logged_models([run.experiment_id])) == 2, "another run's checkpoint of the same step"
    assert len(client.search_model_versions("name = 'toy-model'")) == 2


def test_errors_of_mlflow_are_raised(database: Path) -> None:
    run = open_run(database, "refused-1")
    run.ship([{"op": "params", "values": {"seed": "1"}}])
    with pytest.raises(MlflowException, match="seed"):
        run.ship([{"op": "params", "values": {"seed": "2"}}])
    with pytest.raises(OSError, match="nothing"):
        run.ship([{"op": "artifact", "path": "/nothing/there.png", "folder": None}])
