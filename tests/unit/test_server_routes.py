"""The server's routes for a home: answers, errors and permissions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from drivetrain.api import rank_logs
from drivetrain.home import Home
from drivetrain.job import bundle
from drivetrain.runs.states import Placing, Preparing, Progress, Ready, Training
from drivetrain.runs.view import RunView
from drivetrain.server import cluster, metrics, results, runs
from drivetrain.server import logs as logs_module
from drivetrain.server.access import Role
from drivetrain.server.logs import follow
from drivetrain_workers.protocol.reasons import Reason
from drivetrain_workers.records.run_folder import RunFolder
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from tests.unit.runs import PLACE, TOY, home_in, make_run, train, write_numbers
from tests.unit.server import CLUSTER, Server


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    return home_in(tmp_path / "home", monkeypatch)


@pytest.fixture
def server(home: Home) -> Server:
    return Server(home)


@pytest.fixture
def ann(server: Server) -> Iterator[TestClient]:
    with server.client("ann", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def package(tmp_path: Path) -> tuple[str, bytes]:
    folder = tmp_path / "toy"
    folder.mkdir()
    write_numbers(folder / "numbers.csv")
    (folder / "model.py").write_text("def make(): ...\ndef loss(model, batch): ...\n")
    (folder / "job.yaml").write_text(yaml.safe_dump({**TOY, "model": {"factory": "model:make", "loss": "model:loss"}}))
    return bundle.pack(folder)


# Submission -------------------------------------------------------------------------------------------------------


def test_a_job_is_uploaded_and_submitted(server: Server, ann: TestClient, package: tuple[str, bytes]) -> None:
    digest, content = package
    assert ann.get(f"/packages/{digest}").json() == {"there": False}
    early = ann.post("/runs", json={"package": digest})
    assert (early.status_code, early.json()["input"]["where"]) == (422, "package")
    assert ann.put(f"/packages/{digest}", content=content).status_code == 201
    assert ann.get(f"/packages/{digest}").json() == {"there": True}
    git = {"commit": "a" * 40, "uncommitted": "diff"}
    body = {"package": digest, "overrides": ["training.steps=9"], "idempotency_key": "k", "git": git}
    answer = ann.post("/runs", json=body)
    assert answer.status_code == 201, answer.text
    run = answer.json()
    assert (run["user"], run["phase"], run["ended"], run["reason"]) == ("ann", "queued", False, "")
    assert server.home.run(run["run_id"]).resolved()["training"]["steps"] == 9
    assert [state.commit for state in server.session.git if state] == ["a" * 40]
    assert ann.post("/runs", json=body).json()["run_id"] == run["run_id"]


def test_a_package_is_named_by_its_bytes(server: Server, ann: TestClient, package: tuple[str, bytes]) -> None:
    answer = ann.put(f"/packages/{'0' * 64}", content=package[1])
    assert answer.status_code == 422
    assert answer.json()["input"]["given"] == "bytes with another digest"
    assert not server.home.packages.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"package": "../../etc"},
        {"job_file": "../job.yaml"},
        {"job_file": ".hidden"},
        {"git": {"commit": "; rm"}},
        {"idempotency_key": ""},
        {"overrides": ["a=1"] * 201},
        {"surprise": 1},
    ],
)
def test_a_submission_is_checked(change: dict[str, Any], ann: TestClient, package: tuple[str, bytes]) -> None:
    ann.put(f"/packages/{package[0]}", content=package[1])
    assert ann.post("/runs", json={"package": package[0], **change}).status_code == 422
    assert ann.get("/runs").json() == []


@pytest.mark.parametrize(
    ("change", "where"), [({"overrides": ["training.stepz=9"]}, "training.stepz"), ({"job_file": "other.yaml"}, "JOB")]
)
def test_a_wrong_job_makes_no_run(
    change: dict[str, Any], where: str, ann: TestClient, package: tuple[str, bytes]
) -> None:
    ann.put(f"/packages/{package[0]}", content=package[1])
    answer = ann.post("/runs", json={"package": package[0], **change})
    assert answer.status_code == 422
    assert answer.json()["input"]["where"] == where
    assert ann.get("/runs").json() == []


# A run ------------------------------------------------------------------------------------------------------------


def test_a_run_with_its_history_and_account(home: Home, ann: TestClient) -> None:
    make_run(home, "toy-1", mlflow_uri="http://ann:secret@mlflow:5000")
    train(home, "toy-1")
    found = ann.get("/runs/toy")  # by the beginning of its id
    run = found.json()
    assert (run["run_id"], run["phase"], run["reason"], run["ended"]) == ("toy-1", "ended", "completed", True)
    assert run["progress"]["step"] == 4
    phases = ["preparing", "ready", "placing", "starting", "training", "ended"]
    assert [entry["phase"] for entry in run["history"]] == phases
    assert run["history"][-1]["why"] == "to ended"
    assert run["facts"]["eval_loss"] == run["view"]["facts"]["eval_loss"] == 0.5
    assert "secret" not in found.text
    assert "mlflow:5000" in found.text
    account = ann.get("/runs/toy-1/account").json()
    assert sum(account["seconds"].values()) == pytest.approx(account["wall_s"])


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/runs/other"),
        ("GET", "/runs/other/account"),
        ("GET", "/runs/other/view"),
        ("GET", "/runs/other/logs"),
        ("POST", "/runs/other/cancel"),
        ("POST", "/runs/other/resume"),
        ("POST", "/runs/other/retry"),
        ("POST", "/runs/other/sync"),
        ("GET", "/runs/other/report"),
        ("GET", "/runs/other/diff/toy-1"),
        ("GET", "/runs/toy-1/diff/other"),
        ("GET", "/runs/toy-1/diff/other/losses.png"),
    ],
)
def test_a_run_that_is_not_there(method: str, path: str, home: Home, ann: TestClient) -> None:
    make_run(home, "toy-1")
    answer = ann.request(method, path)
    assert answer.status_code == 404
    missing = {"kind": "run", "name": "other", "known": ["toy-1"], "searched": "", "fix": ""}
    assert answer.json()["missing"] == missing


def test_live_figures(home: Home, server: Server, ann: TestClient) -> None:
    make_run(home, "toy-1")
    server.session.views["toy-1"] = RunView("toy-1", "training", 7, step=3, loss=1.5)
    view = RunView.from_json(ann.get("/runs/toy-1/view", params={"known_version": 6, "timeout_s": 1}).json())
    assert view == server.session.views["toy-1"]
    assert ann.get("/runs/toy-1/view", params={"timeout_s": 31}).status_code == 422


def test_a_run_is_changed_by_its_owner_or_an_admin(home: Home, server: Server, ann: TestClient) -> None:
    make_run(home, "toy-1", user="bob")
    for change in ("cancel", "resume", "sync"):
        answer = ann.post(f"/runs/toy-1/{change}")
        assert answer.status_code == 403
        assert answer.json()["detail"] == "toy-1 belongs to bob; changing it needs the role admin"
    with server.client("eve", Role.VIEWER) as viewer:
        assert viewer.post("/runs/toy-1/cancel").status_code == 403
    with server.client("root", Role.ADMIN) as admin:
        assert admin.post("/runs/toy-1/cancel").json()["reason"] == "cancelled"
    with server.client("bob") as bob:
        assert bob.post("/runs/toy-1/resume").json()["phase"] == "queued"
    again = ann.post("/runs/toy-1/retry")
    assert (again.status_code, again.json()["user"]) == (201, "ann"), "a copy of another's run is one's own"


def test_a_run_that_has_ended_is_not_cancelled_again(home: Home, ann: TestClient) -> None:
    make_run(home, "toy-1")
    train(home, "toy-1")
    assert ann.post("/runs/toy-1/cancel").json()["reason"] == "completed"


# The cluster ------------------------------------------------------------------------------------------------------


def test_the_cluster_is_shown(ann: TestClient) -> None:
    assert [entry["run"] for entry in ann.get("/queue").json()] == ["toy-2", "toy-3"]
    nodes = ann.get("/nodes").json()
    assert [node["address"] for node in nodes] == [node.address for node in CLUSTER.nodes]
    assert nodes[0]["ranks"] == {"toy-1": 2}
    assert ann.get("/me").json() == {"user": "ann", "role": "user"}


def test_tokens_are_for_admins(server: Server, ann: TestClient) -> None:
    assert ann.get("/tokens").status_code == 403
    with server.client("root", Role.ADMIN) as admin:
        made = admin.post("/tokens", json={"user": "tom", "role": "viewer", "days": 1})
        assert made.status_code == 201
        listed = admin.get("/tokens")
        assert {"tom", "ann", "root"} == {token["user"] for token in listed.json()}
        assert made.json()["token"] not in listed.text
        tom = {"Authorization": f"Bearer {made.json()['token']}"}
        assert admin.get("/me", headers=tom).json() == {"user": "tom", "role": "viewer"}
        assert admin.delete(f"/tokens/{made.json()['id']}").status_code == 204
        assert admin.get("/me", headers=tom).status_code == 401
        assert admin.delete(f"/tokens/{made.json()['id']}").status_code == 404
        for wrong in ({"user": "tom", "role": "king"}, {"user": "", "role": "user"}, {"user": "tom", "is": "admin"}):
            assert admin.post("/tokens", json=wrong).status_code == 422


def test_every_route_needs_a_token(server: Server, ann: TestClient) -> None:
    paths = ann.get("/openapi.json").json()["paths"]
    routes = [(method, path) for path, methods in paths.items() for method in methods]
    assert len(routes) == sum(len(part.router.routes) for part in (runs, results, cluster, metrics))
    with TestClient(server.app) as anonymous:
        for method, path in routes:
            answer = anonymous.request(method, path.replace("{", "").replace("}", ""))
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"] == "Bearer"


def test_a_disk_that_is_full_is_told(server: Server, ann: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(server.session, "cluster", fail)
    answer = ann.get("/queue")
    assert answer.status_code == 500
    assert "No space left on device" in answer.json()["detail"]


# Logs -------------------------------------------------------------------------------------------------------------


def test_logs_of_all_ranks_name_them(home: Home, server: Server, ann: TestClient) -> None:
    make_run(home, "toy-1")
    server.log_line("toy-1", 0, "one\ntwo\n")
    server.log_line("toy-1", 1, "three\nfour is cut")
    assert ann.get("/runs/toy-1/logs").text == "rank-0: one\nrank-0: two\nrank-1: three\nrank-1: four is cut"
    assert ann.get("/runs/toy-1/logs", params={"rank": 1}).text == "three\nfour is cut"
    assert ann.get("/runs/toy-1/logs", params={"rank": 7}).text == ""
    assert ann.get("/runs/toy-1/logs", params={"rank": -1}).status_code == 422


def test_following_ends_with_the_run(home: Home, server: Server, ann: TestClient) -> None:
    make_run(home, "toy-1")
    train(home, "toy-1")
    server.log_line("toy-1", 0, "the end\n")
    assert ann.get("/runs/toy-1/logs", params={"follow": True}).text == "rank-0: the end\n"


def followed(folder: RunFolder, rank: int | None, turns: list[str]) -> bytes:
    """Return what a follower receives of rank 0's log, which grows by one of ``turns`` before each check."""
    path = folder.log(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    left = list(turns)

    def done() -> bool:
        with path.open("a") as file:
            file.write(left.pop(0))
        return not left

    async def read() -> bytes:
        return b"".join([piece async for piece in follow(folder, rank, done)])

    return asyncio.run(read())


def test_a_line_that_is_being_written_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is sent once it is complete, and named once."""
    monkeypatch.setattr(logs_module, "_POLL_INTERVAL_S", 0.0)
    turns = ["one\ntw", "o", "\n", "", "three"]
    assert followed(RunFolder(tmp_path), None, turns) == b"rank-0: one\nrank-0: two\nrank-0: three"


@pytest.mark.parametrize("size", [1, 4, 7, 64])
def test_whatever_the_pieces_nothing_is_lost(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs_module, "_POLL_INTERVAL_S", 0.0)
    monkeypatch.setattr(rank_logs, "_PIECE_BYTES", size)
    turns = ["a line longer than a piece\n", "x\n\n", "unfinished", " but now\n", "last"]
    assert followed(RunFolder(tmp_path), 0, turns) == "".join(turns).encode()


# Metrics ----------------------------------------------------------------------------------------------------------


def figures(server: Server) -> dict[tuple[str, ...], float]:
    """Return the metrics as Prometheus reads them: values by name and by labels in the order of their names."""
    with server.client("prometheus", Role.VIEWER, path="") as client:
        answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    samples = [sample for family in text_string_to_metric_families(answer.text) for sample in family.samples]
    return {
        (sample.name.removeprefix("drivetrain_"), *(value for _, value in sorted(sample.labels.items()))): sample.value
        for sample in samples
    }


def test_what_has_not_happened_is_zero(server: Server) -> None:
    found = figures(server)
    assert found["runs", "training"] == found["runs", "queued"] == 0
    assert found["runs_ended_total", "completed"] == found["recoveries_total", "hung"] == 0
    assert found["admissions_total",] == 0
    assert not [key for key in found if key[0].startswith("run_")]


def test_the_cluster_is_asked_when_figures_are(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at the start of the server, when the coordinator may be unavailable."""

    def fail() -> None:
        raise OSError("the coordinator is away")

    monkeypatch.setattr(server.session, "cluster", fail)
    made = metrics.registry(server.parts)
    with pytest.raises(OSError, match="away"):
        list(made.collect())


def test_nodes_and_queue_are_counted(server: Server) -> None:
    found = figures(server)
    assert [found["nodes", state] for state in ("usable", "draining", "quarantined")] == [1, 1, 1]
    assert [found["cpus", state] for state in ("there", "used")] == [20, 2]
    assert [found["gpus", state] for state in ("there", "used")] == [1, 1]
    assert found["queue_length", "default", "an allocation"] == 1


def test_runs_are_shown_until_they_end(home: Home, server: Server) -> None:
    make_run(home, "toy-1")
    train(home, "toy-1", reason=Reason.HUNG)
    make_run(home, "toy-2", user="bob")
    for state in (
        Preparing(),
        Ready("d"),
        Placing("d", PLACE),
        Training("d", PLACE, progress=Progress(step=3, restarts=1, failures={"rank_killed": 1})),
    ):
        server.store.save("toy-2", state, "")
    server.session.views["toy-2"] = RunView("toy-2", "training", step=3, steps=10, loss=1.5, step_s=0.25, restarts=1)
    found = figures(server)
    assert found["runs", "training"] == 1
    assert found["run_step", "toy-2", "bob"] == 3
    assert found["run_step_seconds", "toy-2", "bob"] == 0.25
    assert ("run_tokens_per_second", "toy-2", "bob") not in found, "nothing is known of it yet"
    assert found["run_goodput_ratio", "toy-2", "bob"] == 0
    assert ("run_time_seconds", "queued", "toy-2", "bob") in found
    assert not [key for key in found if "toy-1" in key]
    assert found["admissions_total",] == 2
    assert found["recoveries_total", "rank_killed"] == 1
    assert found["runs_ended_total", "hung"] == 1
