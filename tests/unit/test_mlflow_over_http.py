"""A real MLflow server: whatever it answers, everything arrives in the end, and nothing holds up the rest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from drivetrain.tracking.destination import UnavailableError
from drivetrain.tracking.mlflow_client import MlflowRun
from drivetrain.tracking.mlflow_lookup import Wanted
from drivetrain.tracking.mlflow_names import accepted_file, accepted_name
from drivetrain.tracking.spool import Spool
from drivetrain.tracking.totals import Record
from drivetrain.tracking.tracker import Tracker
from mlflow import MlflowClient

from tests.mlflow_server import MlflowServer, mlflow_server
from tests.unit.runs import metrics

NAMES = [
    "acc@1",
    "acc_1",
    "../x",
    "a//b",
    "",
    "é",
    "a b",
    "top-5 %",
    "x" * 300,
    "f1\n",
    "\ud800",
    "a\0",
    "node:1/gpu.0",
]
_REFUSED = r"refused|too many \d+ error responses"
VALUES = {name: float(number) for number, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    before = dict(os.environ)
    with mlflow_server(tmp_path_factory.mktemp("server")) as found:
        yield found
    for name in [name for name in os.environ if name not in before and name.startswith("MLFLOW_")]:
        del os.environ[name]


@pytest.fixture(autouse=True)
def _answers_again(server: MlflowServer) -> Iterator[None]:
    yield
    server.mode, server.refused = "good", {}


def open_run(server: MlflowServer, name: str) -> MlflowRun:
    return MlflowRun(server.uri, Wanted("toys", None, name, "ann", 1000.0))


def records_of(folder: Path) -> list[Record]:
    picture = folder / "loss.png"
    picture.write_bytes(b"picture")
    return [
        {"op": "params", "values": {f"key{number}": "é" * 6000 for number in range(200)}},  # over 1 MB in one request
        {"op": "params", "values": {name: name for name in NAMES}},
        metrics("eval", 1, **VALUES),
        {"op": "artifact", "path": str(picture), "folder": None},
        {"op": "register", "name": "toy-model", "folder": str(folder)},
        metrics("train", 2, loss=1.0),
        {"op": "end", "status": "FAILED", "time_ms": 9000},
    ]


def check_run(client: MlflowClient, run: MlflowRun) -> None:
    found = client.get_run(run.run_id)
    assert found.info.status == "FAILED"
    assert found.data.metrics == {accepted_name(name): value for name, value in VALUES.items()} | {"loss": 1.0}
    assert found.data.params.items() >= {accepted_name(name): name for name in NAMES if name.isprintable()}.items()
    assert found.data.params[accepted_name("a\0")] == "a?"
    assert len(found.data.params) == 200 + len(NAMES)


def test_a_server_has_everything_under_a_known_name(server: MlflowServer, tmp_path: Path) -> None:
    run, client = open_run(server, "named-1"), MlflowClient(server.direct)
    shipment = run.ship(records_of(tmp_path))
    assert not shipment.late
    assert not shipment.refused
    check_run(client, run)
    assert [file.path for file in client.list_artifacts(run.run_id)] == ["loss.png", "model"]


def test_files_of_any_name_arrive_under_a_known_name(server: MlflowServer, tmp_path: Path) -> None:
    run, client = open_run(server, "files-1"), MlflowClient(server.direct)
    names = ["a", "a#b.py", "a?b.py", "a b.py", "a%20b.py", "%2e%2e.py", "x\ny.py", "ü.py", "a:b", "[x]&+;~.py", "#"]
    for name in names:
        (tmp_path / name).write_text(name)
    records: list[Record] = [
        {"op": "artifact", "path": str(tmp_path / name), "folder": folder}
        for name in names
        for folder in (None, f"code/{name}")
    ]
    shipment = run.ship(records)
    assert not shipment.late
    assert not shipment.refused
    assert {Path(name.removeprefix("artifact ")).name for name in shipment.renamed} == {
        name for name in names if accepted_file(name) != name
    }
    for name in names:
        for stored in (accepted_file(name), f"code/{accepted_file(name)}/{accepted_file(name)}"):
            assert Path(client.download_artifacts(run.run_id, stored, str(tmp_path))).read_text() == name


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_a_server_that_refuses_everything_gets_it_later(server: MlflowServer, tmp_path: Path, status: int) -> None:
    run, records = open_run(server, f"status-{status}"), records_of(tmp_path)
    server.refused = {"/mlflow/runs/": status}
    with pytest.raises(UnavailableError, match=_REFUSED):
        run.ship(records)
    with pytest.raises(UnavailableError, match=_REFUSED):
        open_run(server, f"status-{status}")
    server.refused = {}
    assert not run.ship(records).late
    check_run(MlflowClient(server.direct), run)


def test_a_server_that_is_away_is_named_in_plain_words(server: MlflowServer) -> None:
    server.mode = "away"
    with pytest.raises(UnavailableError, match=rf"^{server.uri} does not respond(: [A-Za-z ]+)?$"):
        open_run(server, "away-1")
    with pytest.raises(UnavailableError, match=r"^http://\*\*\*@127.0.0.1:9 does not respond: Connection refused$"):
        MlflowRun("http://ann:secret@127.0.0.1:9", Wanted("toys", None, "away-2", "ann", 1000.0))


@pytest.mark.parametrize(
    ("part", "status", "late"),
    [("mlflow-artifacts", 500, [3, 4]), ("registered-models", 403, []), ("model-versions", 403, [4])],
)
def test_a_part_that_fails_holds_up_nothing_else(
    server: MlflowServer, tmp_path: Path, part: str, status: int, late: list[int]
) -> None:
    """The artifact store is away, or the user may not register models."""
    run, records, client = open_run(server, f"part-{part}"), records_of(tmp_path), MlflowClient(server.direct)
    server.refused = {part: status}
    shipment = run.ship(records)
    assert sorted(shipment.late) == late
    assert not shipment.refused
    check_run(client, run)
    server.refused = {}
    assert not run.ship([records[number] for number in late]).late
    assert [file.path for file in client.list_artifacts(run.run_id)] == ["loss.png", "model"]


def test_a_run_that_ended_while_the_server_was_away_is_terminal_when_it_answers(
    server: MlflowServer, tmp_path: Path
) -> None:
    """So is one that has logged nothing else, because its data could not be prepared."""
    server.mode = "away"
    tracker = Tracker(Spool(tmp_path / "spool"), lambda: open_run(server, "ended-1"))
    tracker.begin()
    tracker.end("FAILED")
    assert not tracker.flush(2)
    assert tracker.problem.startswith(f"{server.uri} does not respond")
    tracker.close()
    server.mode = "good"
    again = Tracker(Spool(tmp_path / "spool"), lambda: open_run(server, "ended-1"))
    assert again.flush(60)
    assert MlflowClient(server.direct).get_run(again.identity["mlflow_run_id"]).info.status == "FAILED"
    again.close()
