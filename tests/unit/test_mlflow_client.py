"""Each record arrives in MLflow once, even if it is sent repeatedly; one that MLflow rejects holds up no other."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from drivetrain.tracking.destination import DeletedError, Destination
from drivetrain.tracking.embedded import make_database
from drivetrain.tracking.mlflow_client import MlflowRun
from drivetrain.tracking.mlflow_lookup import Wanted
from drivetrain.tracking.mlflow_names import accepted_file, accepted_name
from drivetrain.tracking.totals import Record
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import _validate_metric_name, _validate_param_name, _validate_tag_name

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


def open_run(
    database: Path, name: str, experiment: str = "toys", known_id: str = "", remake: bool = False
) -> MlflowRun:
    uri, artifacts = f"sqlite:///{database / 'mlflow.db'}", database / "mlartifacts" / experiment
    return MlflowRun(uri, Wanted(experiment, artifacts, name, "ann", 1000.0, known_id, remake))


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


ODD = st.sampled_from(["acc@1", "acc_1", "../x", "a//b", "", ".", "/a", "a/", "é", "a\n", "top-5 %", "x" * 251, "a:b"])
NAMES = ODD | st.text(st.characters(), max_size=12) | st.text("ab/._@", max_size=6)
NUMBERS = st.floats() | st.integers()
RUNS = count()


def stored(value: float) -> float:
    """Return a value as SQL stores it for MLflow, which replaces infinity by the largest number."""
    limit = 1.7976931348623157e308
    return float(value) if math.isnan(value) else max(-limit, min(limit, float(value)))


@given(names=st.sets(NAMES, max_size=20))
def test_names_are_kept_or_become_others_that_mlflow_accepts(names: set[str]) -> None:
    accepted = [accepted_name(name) for name in names]
    assert len({*accepted}) == len(names), "no two names fall together"
    for name, new in zip(names, accepted, strict=True):
        for check in (_validate_metric_name, _validate_param_name, _validate_tag_name):
            check(new)  # type: ignore[no-untyped-call]  # MLflow's
        assert len(new) <= 250
        assert accepted_name(new) == new
        assert new == name or name.endswith("\n") or len(name) > 250 or not accepts(name)


@given(names=st.sets(st.text(st.characters(exclude_characters="/"), min_size=1, max_size=8), max_size=20))
def test_names_of_files_do_not_fall_together_in_urls(names: set[str]) -> None:
    accepted = {accepted_file(name) for name in names}
    assert len(accepted) == len(names)
    for name in accepted:
        url = f"http://host/{name}"
        assert accepted_file(name) == name
        assert unquote(urlsplit(url).path) == f"/{name}"


def accepts(name: str) -> bool:
    try:
        _validate_metric_name(name)  # type: ignore[no-untyped-call]  # MLflow's
    except MlflowException:
        return False
    return True


@settings(max_examples=40)
@given(
    values=st.dictionaries(NAMES, NUMBERS, min_size=1, max_size=8),
    params=st.dictionaries(NAMES, st.text(st.characters())),
)
def test_whatever_a_job_logs_arrives_under_a_known_name(
    database: Path, values: dict[str, float], params: dict[str, str]
) -> None:
    """An independent client finds every metric and parameter, and what follows them."""
    client = MlflowClient(f"sqlite:///{database / 'mlflow.db'}")
    run = open_run(database, f"any-{next(RUNS)}", "any")
    records: list[Record] = [metrics("eval", 1, **values), {"op": "params", "values": params}]
    shipment = run.ship([*records, metrics("train", 2, after=1.0), {"op": "end", "status": "FINISHED", "time_ms": 9}])
    assert not shipment.late
    found = client.get_run(run.run_id)
    assert (found.info.status, found.data.metrics.pop("after")) == ("FINISHED", 1.0)
    refused = {name for name in values if f"metric {name}" in shipment.refused}
    assert all(isinstance(values[name], int) and abs(values[name]) > 2**1000 for name in refused), "no float holds it"
    arrived = {accepted_name(name): stored(value) for name, value in values.items() if name not in refused}
    assert found.data.metrics.keys() == arrived.keys()
    for name, value in found.data.metrics.items():
        assert value == arrived[name] or (math.isnan(value) and math.isnan(arrived[name]))
    odd = {name for name, value in params.items() if re.search("[\0\ud800-\udfff]", value)}
    assert {name: found.data.params[accepted_name(name)] for name in params.keys() - odd} == {
        name: value for name, value in params.items() if name not in odd
    }
    assert len(found.data.params) == len(params)
    for kind, names in (("metric", values.keys() - refused), ("parameter", params.keys())):
        renamed = {name for name in names if accepted_name(name) != name}
        changed = renamed | (odd if kind == "parameter" else set())
        assert changed == {name for name in names if f"{kind} {name}" in shipment.renamed}
        assert all(repr(accepted_name(name)) in shipment.renamed[f"{kind} {name}"] for name in renamed)


def test_what_mlflow_rejects_is_set_aside(database: Path, client: MlflowClient, tmp_path: Path) -> None:
    """One parameter of many has changed, values are too long, a step and a file are impossible: the rest arrives."""
    run, params = open_run(database, "aside-1"), {f"key{number}": "1" for number in range(130)}
    run.ship([{"op": "params", "values": {"key77": "first"}}])
    (tmp_path / "loss.png").write_bytes(b"picture")
    shipment = run.ship(
        [
            {"op": "params", "values": {**params, "long": "v" * 7000}},
            {"op": "tags", "values": {"drivetrain.detail": "d" * 9000}},
            {"op": "metrics", "series": "train", "step": 1 << 63, "time_ms": 1, "values": {"far": 1.0}},
            {"op": "metrics", "series": "train", "step": 1, "time_ms": -1, "values": {"before 1970": 1.0}},
            {"op": "metrics", "series": "train", "step": 1, "time_ms": 1, "values": {"none": None, "loss": 2.0}},
            {"op": "artifact", "path": "/nothing/there.png", "folder": None},
            {"op": "artifact", "path": str(tmp_path / "loss.png"), "folder": None},
            {"op": "register", "name": "lost", "folder": "/nothing"},
            {"op": "of a later version"},
            {"op": "end", "status": "FAILED", "time_ms": 9000},
        ]
    )
    assert not shipment.late
    assert sorted(shipment.refused) == [
        "artifact /nothing/there.png",
        "metric before 1970",
        "metric far",
        "metric none",
        "of a later version",
        "parameter key77",
        "register lost",
    ]
    assert shipment.refused["parameter key77"] == "MLflow keeps its first value, 'first'"
    assert shipment.refused["artifact /nothing/there.png"] == "the file cannot be read: No such file or directory"
    assert shipment.renamed["parameter long"] == "is cut to 6000 of 7000 characters"
    found = client.get_run(run.run_id)
    assert found.info.status == "FAILED"
    assert found.data.params == {**params, "key77": "first", "long": "v" * 5997 + "..."}
    assert found.data.metrics == {"loss": 2.0}
    assert len(found.data.tags["drivetrain.detail"]) == 8000
    assert [file.path for file in client.list_artifacts(run.run_id)] == ["loss.png"]


def test_records_that_fail_while_others_arrive_are_late(database: Path, client: MlflowClient, tmp_path: Path) -> None:
    """The artifact store is away: a file is in the place of its folder."""
    run = open_run(database, "late-1", "late")
    (tmp_path / "loss.png").write_bytes(b"picture")
    (database / "mlartifacts").mkdir(exist_ok=True)
    (database / "mlartifacts" / "late").write_text("no folder")
    records: list[Record] = [
        metrics("train", 1, loss=1.0),
        {"op": "artifact", "path": str(tmp_path / "loss.png"), "folder": None},
        {"op": "end", "status": "FINISHED", "time_ms": 9000},
    ]
    shipment = run.ship(records)
    assert list(shipment.late) == [1]
    assert not shipment.refused
    assert client.get_run(run.run_id).info.status == "FINISHED"
    (database / "mlartifacts" / "late").unlink()
    assert not run.ship(records[1:2]).late
    assert [file.path for file in client.list_artifacts(run.run_id)] == ["loss.png"]


def test_a_run_that_was_deleted_stays_deleted_until_it_is_wanted_again(database: Path, client: MlflowClient) -> None:
    run = open_run(database, "gone-1")
    run.ship([metrics("train", 1, loss=1.0)])
    client.delete_run(run.run_id)
    with pytest.raises(DeletedError, match="drivetrain sync gone-1"):
        run.ship([metrics("train", 2, loss=0.5)])
    for known_id in ("", run.run_id):
        with pytest.raises(DeletedError, match="was deleted in MLflow"):
            open_run(database, "gone-1", known_id=known_id)
    again = open_run(database, "gone-1", known_id=run.run_id, remake=True)
    assert again.run_id == run.run_id
    assert not again.ship([metrics("train", 2, loss=0.5)]).refused
    assert [each.step for each in client.get_metric_history(run.run_id, "loss")] == [1, 2]


def test_a_run_that_was_purged_is_made_again_only_on_request(database: Path) -> None:
    with pytest.raises(DeletedError, match="was deleted in MLflow"):
        open_run(database, "purged-1", known_id="0123456789abcdef0123456789abcdef")
    assert open_run(database, "purged-1", known_id="0123456789abcdef0123456789abcdef", remake=True).run_id


def test_a_deleted_experiment_is_restored_by_its_owner(database: Path, client: MlflowClient) -> None:
    run = open_run(database, "within-1", "dropped")
    client.delete_experiment(run.experiment_id)
    for remake in (False, True):
        with pytest.raises(DeletedError, match=f"mlflow experiments restore --experiment-id {run.experiment_id}"):
            open_run(database, "within-1", "dropped", run.run_id, remake)
    with pytest.raises(DeletedError):
        run.ship([metrics("train", 1, loss=1.0)])
    client.restore_experiment(run.experiment_id)
    assert open_run(database, "within-1", "dropped", run.run_id).run_id == run.run_id


def test_a_checkpoint_that_was_half_logged_is_completed(database: Path, client: MlflowClient) -> None:
    run = open_run(database, "half-1", "half")
    client.create_logged_model(run.experiment_id, "step-00000004", source_run_id=run.run_id)  # and the process died
    values = {"eval_loss": 0.5, "eval_acc@1": 0.25}
    record: Record = {"op": "checkpoint", "step": 4, "location": "/step-4", "values": values, "time_ms": 4000}
    for _ in range(2):
        assert not run.ship([record]).refused
    (model,) = client.search_logged_models([run.experiment_id])
    assert model.status == "READY"
    assert {each.key for each in model.metrics} == {"checkpoint_eval_loss", accepted_name("checkpoint_eval_acc@1")}
