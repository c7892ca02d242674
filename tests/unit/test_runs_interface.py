"""One interface for runs: those of this machine and those of a server answer alike."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import drivetrain
import pytest
from drivetrain.api import client as client_module
from drivetrain.api import local as local_module
from drivetrain.api import session as session_module
from drivetrain.api.client import Client
from drivetrain.api.connect import connect
from drivetrain.api.interface import RunInfo, Runs
from drivetrain.api.local import LocalRuns
from drivetrain.api.predictions import MAX_INPUT_BYTES
from drivetrain.errors import InputError, NotFoundError, ServerError
from drivetrain.home import Home
from drivetrain.runs.states import Progress, Training
from drivetrain.runs.view import RunView
from drivetrain.server.access import Role
from drivetrain_workers.errors import CheckpointError
from drivetrain_workers.model_processes import requests
from drivetrain_workers.model_processes.requests import PredictRequest, Request
from drivetrain_workers.protocol.reasons import Reason
from fastapi.testclient import TestClient

from tests.unit.gcs import answering_gcs
from tests.unit.runs import PLACE, TOY, home_in, job, log, make_run, metrics, train, write_numbers
from tests.unit.server import LocalSession, Server

URL = "http://testserver"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    return home_in(tmp_path / "home", monkeypatch)


@pytest.fixture
def server(home: Home, monkeypatch: pytest.MonkeyPatch) -> Server:
    """One that answers the clients of this process, which are ann's."""
    found = Server(home)
    monkeypatch.setenv("DRIVETRAIN_TOKEN", found.tokens.create("ann", Role.USER)[0])

    def open_client(base_url: str, headers: dict[str, str], **_: Any) -> TestClient:
        return TestClient(found.app, base_url, headers=headers)

    monkeypatch.setattr(client_module.httpx, "Client", open_client)
    return found


@pytest.fixture(params=["local", "server"])
def runs(request: pytest.FixtureRequest, server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runs]:
    """The same runs, from both places; a session of the home stands for Ray."""

    @contextmanager
    def session(*_: Any) -> Iterator[LocalSession]:
        yield server.session

    monkeypatch.setattr(session_module, "open_session", session)
    monkeypatch.setattr(session_module, "session_of_run", session)
    monkeypatch.setattr(local_module, "user_name", lambda: "ann")
    with connect(URL if request.param == "server" else None) as found:
        yield found


# Both places ------------------------------------------------------------------------------------------------------


def test_runs_are_listed_with_their_steps(home: Home, runs: Runs) -> None:
    for number in range(3):
        make_run(home, f"toy-{number}", user="ann" if number else "bob")
    train(home, "toy-0")
    log(home.run("toy-1"), [metrics("train", 2, loss=1.0)])
    listed = runs.list(limit=2)
    assert [(run.id, run.phase, run.step, run.steps) for run in listed] == [
        ("toy-2", "queued", 0, 4),
        ("toy-1", "queued", 2, 4),
    ]
    assert [run.id for run in runs.list(before="toy-1")] == ["toy-0"]
    assert [run.id for run in runs.list(user="bob")] == ["toy-0"]
    (ended,) = runs.list(phase="ended")
    assert (ended.reason, ended.ended, ended.step, ended.updated >= ended.created) == ("completed", True, 4, True)
    assert ended.view is ended.account is None
    assert ended.history == ()


def test_every_run_is_reached_page_by_page(home: Home, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drivetrain.api.interface._PAGE", 2)
    for number in range(5):
        make_run(home, f"toy-{number}")
    assert [run.id for run in runs.all()] == [f"toy-{number}" for number in (4, 3, 2, 1, 0)]


def test_a_run_has_figures_history_and_account(home: Home, runs: Runs) -> None:
    make_run(home, "toy-1")
    train(home, "toy-1")
    found = runs.status("toy")
    assert (found.id, found.user, found.phase, found.reason) == ("toy-1", "ann", "ended", "completed")
    assert (found.step, found.steps, found.progress.committed_step) == (4, 4, 4)
    assert found.view
    assert (found.view.loss, found.view.eval_loss, found.view.metrics) == (0.25, 0.5, {"accuracy": 0.75})
    assert [entry.phase for entry in found.history][-2:] == ["training", "ended"]
    assert found.updated == found.history[-1].time
    assert found.account
    assert found.account["wall_s"] == pytest.approx(sum(found.account["seconds"].values()))
    assert RunInfo.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_run_that_does_not_exist(home: Home, runs: Runs, tmp_path: Path) -> None:
    make_run(home, "language-model-1a2b3c")
    asked: list[Callable[[], Any]] = [
        lambda: runs.status("langage-model-1a2b3c"),
        lambda: list(runs.logs("langage-model-1a2b3c")),
        lambda: list(runs.watch("langage-model-1a2b3c")),
        lambda: runs.wait("langage-model-1a2b3c"),
        lambda: runs.cancel("langage-model-1a2b3c"),
        lambda: runs.resume("langage-model-1a2b3c"),
        lambda: runs.retry("langage-model-1a2b3c"),
        lambda: runs.sync("langage-model-1a2b3c"),
        lambda: runs.report("langage-model-1a2b3c", tmp_path / "page.html"),
        lambda: runs.diff("langage-model-1a2b3c", "language-model-1a2b3c"),
        lambda: runs.predict("langage-model-1a2b3c", ["x"]),
    ]
    place = runs.where.partition(" ")[2]
    for ask in asked:
        with pytest.raises(NotFoundError) as caught:
            ask()
        said = str(caught.value)
        assert said.startswith(
            f"there is no run 'langage-model-1a2b3c' in {place}. Did you mean language-model-1a2b3c?"
        )
        assert caught.value.known == ("language-model-1a2b3c",)
    with pytest.raises(NotFoundError, match="Known runs: language-model-1a2b3c"):
        runs.status("x")


def test_an_id_is_no_part_of_a_url(home: Home, runs: Runs) -> None:
    make_run(home, "toy-1")
    for name in ("toy-1?x=1", "toy-1#x", "toy 1"):
        with pytest.raises(NotFoundError, match=r"no run 'toy"):
            runs.status(name)


def test_a_prefix_of_several_runs_is_wrong_input(home: Home, runs: Runs) -> None:
    for name in ("toy-1", "toy-2"):
        make_run(home, name)
    with pytest.raises(InputError, match="toy-1, toy-2"):
        runs.status("toy")


def test_logs_of_an_ended_run(home: Home, runs: Runs, server: Server) -> None:
    make_run(home, "toy-1")
    train(home, "toy-1")
    server.log_line("toy-1", 0, "one\ntwo\n")
    server.log_line("toy-1", 1, "three\n\nno end")
    everything = ["rank-0: one", "rank-0: two", "rank-1: three", "rank-1: ", "rank-1: no end"]
    assert list(runs.logs("toy-1")) == everything
    assert list(runs.logs("toy-1", follow=True)) == everything
    assert list(runs.logs("toy-1", rank=1)) == ["three", "", "no end"]


def test_waiting_and_watching_end_with_the_run(home: Home, runs: Runs) -> None:
    make_run(home, "toy-1")
    with pytest.raises(TimeoutError, match="toy-1 has not ended within 0 s"):
        runs.wait("toy-1", 0)
    train(home, "toy-1", reason=Reason.HUNG)
    assert runs.wait("toy-1", 60).reason == "hung"
    *_, last = runs.watch("toy-1")
    assert (last.phase, last.facts.reason) == ("ended", "hung")


def test_a_run_is_cancelled_resumed_and_tried_again(home: Home, runs: Runs) -> None:
    make_run(home, "toy-1")
    cancelled = runs.cancel("toy-1")
    assert (cancelled.id, cancelled.reason, cancelled.ended) == ("toy-1", "cancelled", True)
    assert runs.cancel("toy-1") == cancelled, "it has ended"
    assert runs.resume("toy-1").phase == "queued"
    assert runs.retry("toy-1").id == "toy-1-again"


def test_a_job_is_submitted_once_for_each_key(runs: Runs, tmp_path: Path) -> None:
    import yaml

    folder = tmp_path / "job"  # not the folder that holds the home: the code of runs would be code of the job
    folder.mkdir()
    write_numbers(folder / "numbers.csv")
    (folder / "model.py").write_text("def make(): ...\ndef loss(model, batch): ...\n")
    sections = {**TOY, "model": {"factory": "model:make", "loss": "model:loss"}}
    (folder / "job.yaml").write_text(yaml.safe_dump(sections))
    first = runs.submit(str(folder / "job.yaml"), ["training.steps=7"], "key")
    assert (first.user, first.phase, first.steps) == ("ann", "queued", 7)
    assert runs.submit(str(folder / "job.yaml"), ["training.steps=7"], "key").id == first.id
    with pytest.raises(InputError, match=r"training\.steps: 8 instead of 7"):
        runs.submit(str(folder / "job.yaml"), ["training.steps=8"], "key")


def test_reports_and_comparisons(home: Home, runs: Runs, tmp_path: Path) -> None:
    for name, width in (("one", 4), ("two", 8)):
        make_run(home, name, job(model={"args": {"width": width}}))
        train(home, name)
    page = runs.report("one", tmp_path / "page.html")
    assert page == tmp_path / "page.html"
    assert "<html" in page.read_text()
    found = runs.diff("one", "two", tmp_path / "losses.png")
    assert found.runs == ("one", "two")
    assert found.settings == {"model.args.width": (4, 8)}
    assert (found.same_steps, found.losses, found.worlds) == (4, None, ([(1, 2)], [(1, 2)]))
    assert not found.same_input
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_has_not_ended_is_not_synced(home: Home, runs: Runs) -> None:
    make_run(home, "toy-1")
    with pytest.raises(InputError, match="toy-1, which is queued"):
        runs.sync("toy-1")


def test_an_ended_run_is_synced(home: Home, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(home, "toy-1")
    train(home, "toy-1")
    asked: list[tuple[str, float]] = []
    for module in ("drivetrain.api.runs.sync", "drivetrain.server.results.sync_run"):
        monkeypatch.setattr(module, lambda run, timeout_s: asked.append((run, timeout_s)))
    runs.sync("toy", 5.0)
    assert asked == [("toy-1", 5.0)]


# Predictions ------------------------------------------------------------------------------------------------------


class Model:
    """The process that holds the trained model, which takes torch: it answers with what it was given."""

    def __init__(self) -> None:
        self.asked: list[PredictRequest] = []
        self.error: Exception | None = None

    def ask(self, request: Request) -> str:
        assert isinstance(request, PredictRequest)
        self.asked.append(request)
        if self.error:
            raise self.error
        rows = []
        for given in request.inputs:
            path = Path(given)
            rows.append({"input": given, "bytes": path.stat().st_size if path.is_file() else None, "text": _said(path)})
        return json.dumps(rows)


def _said(path: Path) -> str:
    return path.read_text() if path.is_file() else str(path)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    found = Model()
    monkeypatch.setattr(requests, "run_request", found.ask)
    return found


def test_texts_and_files_are_predicted(home: Home, runs: Runs, model: Model, tmp_path: Path) -> None:
    make_run(home, "toy-1", dataset="words")
    table = write_numbers(tmp_path / "some.csv", 2)
    rows = runs.predict("toy-1", ["The river", str(table)], max_tokens=5, temperature=0.0, seed=7)
    assert [(row["input"], row["text"]) for row in rows] == [
        ("The river", "The river"),
        (str(table), table.read_text()),
    ]
    (asked,) = model.asked
    assert (asked.max_tokens, asked.temperature, asked.seed) == (5, 0.0, 7)
    assert (asked.run_folder, asked.dataset_folder) == (str(home.run("toy-1").path), "words")
    make_run(home, "new")
    with pytest.raises(InputError, match="has prepared no data yet"):
        runs.predict("new", ["x"])
    model.error = CheckpointError("the run has no checkpoint yet")
    with pytest.raises((CheckpointError, ServerError), match="no checkpoint yet"):
        runs.predict("toy-1", ["x"])


def test_a_text_is_no_name_of_a_servers_file(home: Home, server: Server, model: Model, tmp_path: Path) -> None:
    make_run(home, "toy-1", dataset="words")
    secret = tmp_path / "secret.txt"
    secret.write_text("the token")
    with server.client("eve") as eve:
        answer = eve.post("/runs/toy-1/predict", json={"inputs": [{"name": str(secret)}]})
    assert answer.status_code == 200
    assert answer.json()[0]["text"] == str(secret)
    (asked,) = model.asked
    assert asked.timeout_s
    assert not Path(asked.inputs[0]).exists(), "what was made for the question is removed"


@pytest.mark.parametrize(
    "name", ["../../x.png", "a/b/c.tar.gz", "no suffix", "x." + "y" * 300, ".hidden", "x.p\x00g", "x.jpg/../../etc"]
)
def test_names_of_files_lead_nowhere(name: str, home: Home, server: Server, model: Model) -> None:
    make_run(home, "toy-1", dataset="words")
    content = base64.b64encode(b"12345").decode()
    with server.client("eve") as eve:
        answer = eve.post("/runs/toy-1/predict", json={"inputs": [{"name": name, "content": content}]})
    assert answer.status_code == 200, answer.text
    assert answer.json() == [{"input": name, "bytes": 5, "text": "12345"}]
    (asked,) = model.asked
    assert Path(asked.inputs[0]).parent == Path(asked.pictures).parent


def test_errors_name_what_the_client_has_sent(
    home: Home, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(home, "toy-1", dataset="words")
    picture = tmp_path / "cat.png"
    picture.write_bytes(b"no picture")

    def refuse(request: Request) -> str:
        assert isinstance(request, PredictRequest)
        raise InputError("INPUT", repr(request.inputs[0]), "a file with images for this model")

    monkeypatch.setattr(requests, "run_request", refuse)
    with Client(URL) as client, pytest.raises(InputError) as caught:
        client.predict("toy-1", [str(picture)])
    assert caught.value.given == repr(str(picture))


def test_a_server_returns_no_images(home: Home, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(home, "toy-1", dataset="words")

    def paint(request: Request) -> str:
        assert isinstance(request, PredictRequest)
        Path(request.pictures).mkdir()
        return json.dumps([{"input": request.inputs[0], "image": "x.png"}])

    monkeypatch.setattr(requests, "run_request", paint)
    with Client(URL) as client, pytest.raises(InputError, match="on the server's machine"):
        client.predict("toy-1", ["a cat"])


def test_inputs_of_a_server_have_a_size(home: Home, server: Server, model: Model, tmp_path: Path) -> None:
    make_run(home, "toy-1", dataset="words")
    large = tmp_path / "large.bin"
    with large.open("wb") as file:
        file.truncate(MAX_INPUT_BYTES + 1)
    with Client(URL) as client:
        with pytest.raises(InputError, match="at most 32 MiB"):
            client.predict("toy-1", [str(large)])
        with large.open("r+b") as file:
            file.truncate(3 << 20)  # more than other requests may have
        assert client.predict("toy-1", [str(large)])[0]["bytes"] == 3 << 20
    with server.client("eve") as eve:
        assert eve.post("/runs/toy-1/predict", json={"inputs": [{"name": "x", "content": "?"}]}).status_code == 422
        for wrong in ({"inputs": []}, {"inputs": [{"name": ""}]}, {"inputs": [{"name": "x"}], "max_tokens": 0}):
            assert eve.post("/runs/toy-1/predict", json=wrong).status_code == 422
        huge = {"Content-Length": str(1 << 40)}
        assert eve.post("/runs/toy-1/predict", headers=huge, content=b"{}").status_code == 413
        assert eve.post("/runs/toy-1/cancel", headers={"Content-Length": str(2 << 20)}).status_code == 413
    with server.client("vera", Role.VIEWER) as viewer:
        assert viewer.post("/runs/toy-1/predict", json={"inputs": [{"name": "x"}]}).status_code == 403


def test_a_model_has_a_deadline(tmp_path: Path) -> None:
    request = PredictRequest(str(tmp_path), "words", ["x"], ".", timeout_s=0.05)
    with pytest.raises(CheckpointError, match=r"has not answered within 0\.05 s"):
        requests.predict(request)


# This machine -----------------------------------------------------------------------------------------------------


def test_without_a_server_runs_are_local(home: Home, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(drivetrain.connect(), LocalRuns)
    assert drivetrain.connect().where == f"local {home.path}"
    assert drivetrain.connect(URL).where == f"server {URL}"
    with pytest.raises(InputError, match="a token without a server"):
        connect(token="dt_x")
    monkeypatch.setenv("DRIVETRAIN_SERVER", URL)
    assert isinstance(drivetrain.connect(), Client)
    monkeypatch.setattr(Path, "home", lambda: home.path.parent)
    assert LocalRuns().where == "local ~/home"


def test_reading_loads_no_ray(home: Home) -> None:
    from tests.contracts.test_imports import modules_after

    loaded = modules_after("import drivetrain; runs = drivetrain.connect(); runs.list(); runs.close()")
    assert not loaded & {"torch", "ray", "mlflow", "deepspeed", "httpx", "fastapi", "matplotlib"}


def test_figures_are_those_that_the_run_has_logged(home: Home) -> None:
    folder = make_run(home, "toy-1")
    with LocalRuns() as runs:
        store = runs._store
        store.save("toy-1", Training("d", PLACE, progress=Progress(generation=2, step=1, restarts=1)), "Stepped()")
        log(folder, [metrics("train", 3, loss=1.5, step_s=2.0, tokens_per_s=64.0, learning_rate=0.1)])
        found = runs.status("toy-1")
        assert found.view == RunView(
            "toy-1", "training", version=3, step=3, steps=4, loss=1.5, learning_rate=0.1, tokens_per_s=64.0, step_s=2.0,
            eta_s=2.0, generation=2, restarts=1,
        )  # fmt: skip
        assert (found.step, found.progress.step) == (3, 1)


def test_epochs_are_steps_once_the_data_is_known(home: Home) -> None:
    make_run(home, "toy-1", job(training={"steps": None, "epochs": 1.5}))
    with LocalRuns() as runs:
        assert runs.status("toy-1").steps == 0
        runs._store.update_facts("toy-1", train_samples=160)
        assert runs.status("toy-1").steps == 30
        home.run("toy-1").job_resolved.write_text("torn {")
        assert runs.list()[0].steps == 0


def test_logs_follow_a_run_to_its_end(home: Home, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that is written in two parts comes whole."""
    make_run(home, "toy-1")
    parts = ["one\ntw", "o\n", ""]

    def grow(_: float) -> None:
        server.log_line("toy-1", 0, parts.pop(0))
        if not parts:
            train(home, "toy-1")
            server.log_line("toy-1", 0, "the end")

    monkeypatch.setattr(local_module.time, "sleep", grow)
    with LocalRuns() as runs:
        assert list(runs.logs("toy-1", rank=0, follow=True)) == ["one", "two", "the end"]


def test_bytes_that_are_no_text_are_shown(home: Home, server: Server) -> None:
    make_run(home, "toy-1")
    server.log_line("toy-1", 0, "").write_bytes(b"caf\xe9\n")
    with LocalRuns() as runs:
        assert list(runs.logs("toy-1", rank=0)) == ["caf\\xe9"]


def test_a_run_that_no_ray_runs_cannot_be_cancelled(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(home, "toy-1")
    monkeypatch.setenv("RAY_TMPDIR", str(home.path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with LocalRuns() as runs, pytest.raises(InputError) as caught:
        runs.cancel("toy-1")
    assert "no Ray cluster on this machine runs" in str(caught.value)
    assert "drivetrain resume toy-1" in str(caught.value)


def test_a_run_is_cancelled_on_the_ray_that_runs_it(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, joined = make_run(home, "toy-1"), list[str | None]()

    @contextmanager
    def open_session(address: str | None = None) -> Iterator[LocalSession]:
        joined.append(address)
        yield LocalSession(home)

    monkeypatch.setattr(session_module, "open_session", open_session)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with answering_gcs("1.0") as address:
        (folder.path / "ray-address").write_text(address)
        with LocalRuns() as runs:
            assert runs.cancel("toy-1").reason == "cancelled"
    make_run(home, "toy-2")
    with LocalRuns("10.0.0.1:6379") as runs:
        assert runs.cancel("toy-2").reason == "cancelled"
    assert joined == [address, "10.0.0.1:6379"]
