"""Commands that use a server, against its own application; and commands that create tokens."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import typer
import yaml
from click.testing import Result
from drivetrain.api import client as client_module
from drivetrain.api import transport
from drivetrain.cli import other_groups, serving
from drivetrain.cli.app import app
from drivetrain.cli.errors import exit_as
from drivetrain.home import Home
from drivetrain.runs.facts import RunFacts
from drivetrain.runs.states import Progress, Training
from drivetrain.runs.view import RunView
from drivetrain.server.access import Role
from drivetrain.server.serve import ServerSettings
from drivetrain_workers.protocol.reasons import Reason
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tenacity import stop_after_delay, wait_none
from typer.testing import CliRunner

from tests.unit.runs import PLACE, TOY, home_in, make_run, train, write_numbers
from tests.unit.server import Server

CLIENT = httpx.Client


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    return home_in(tmp_path / "home", monkeypatch)


@pytest.fixture
def server(home: Home, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Return a server for the clients of this process, which belong to user ann."""
    found = Server(home)
    secret, _ = found.tokens.create("ann", Role.USER)
    monkeypatch.setenv("DRIVETRAIN_TOKEN", secret)
    monkeypatch.setenv("DRIVETRAIN_SERVER", "http://testserver")
    monkeypatch.setenv("COLUMNS", "200")

    def connect(base_url: str, headers: dict[str, str], **_: Any) -> TestClient:
        return TestClient(found.app, base_url, headers=headers)

    monkeypatch.setattr(client_module.httpx, "Client", connect)
    return found


def invoke(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result


def lines(*arguments: str, code: int = 0) -> list[str]:
    return invoke(*arguments, code=code).stdout.splitlines()


def test_every_verb_is_there() -> None:
    """Each has a line of help; the groups have their own verbs."""
    said = invoke("--help").stdout
    for verb in ("submit", "status", "logs", "wait", "cancel", "retry", "queue", "nodes", "server", "token", "cluster"):
        assert f" {verb} " in said, verb
        assert "Usage" in invoke(verb, "--help").stdout
    assert other_groups.token.registered_commands
    for verb in ("up", "down", "status", "pools", "leave"):
        assert f" {verb} " in invoke("cluster", "--help").stdout


def test_without_a_token_no_server_is_asked(home: Home) -> None:
    said = invoke("queue", code=2).stderr
    assert said.startswith("error: ")
    assert "DRIVETRAIN_TOKEN" in said


def test_a_server_that_is_no_url(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIVETRAIN_TOKEN", "dt_x")
    assert "--server" in invoke("queue", "--server", "example.org", code=2).stderr


@pytest.fixture
def answering(home: Home, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give the same answer to every request."""
    monkeypatch.setenv("DRIVETRAIN_TOKEN", "dt_x")
    monkeypatch.setenv("DRIVETRAIN_SERVER", "http://testserver")

    def answer(status: int, **content: Any) -> None:
        transport = httpx.MockTransport(lambda _: httpx.Response(status, **content))
        monkeypatch.setattr(
            client_module.httpx, "Client", lambda base_url, **_: CLIENT(base_url=base_url, transport=transport)
        )

    return answer


@pytest.mark.parametrize(
    ("status", "content", "code", "said"),
    [
        (401, {"json": {"detail": "this token is not known here"}}, 1, "this token is not known here (HTTP 401)"),
        (500, {"text": "<h1>Bad</h1>"}, 1, "<h1>Bad</h1> (HTTP 500)"),
        (
            404,
            {"json": {"detail": "x", "input": {"where": "RUN", "given": "'x'", "allowed": "y", "fix": ""}}},
            2,
            "RUN",
        ),
    ],
)
def test_what_a_server_refuses_is_one_line(
    status: int, content: dict[str, Any], code: int, said: str, answering: Callable[..., None]
) -> None:
    answering(status, **content)
    error = invoke("cancel", "x", code=code).stderr
    assert error.startswith("error: ")
    assert said in error
    assert len(error.splitlines()) == 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "toy"
    found.mkdir()
    write_numbers(found / "numbers.csv")
    (found / "model.py").write_text("def make(): ...\ndef loss(model, batch): ...\n")
    (found / "job.yaml").write_text(yaml.safe_dump({**TOY, "model": {"factory": "model:make", "loss": "model:loss"}}))
    return found


def test_a_job_is_sent_once_for_each_key(server: Server, folder: Path) -> None:
    (first,) = lines("submit", str(folder), "--idempotency-key", "k", "--set", "training.steps=7")
    same = ("--idempotency-key", "k", "--set", "training.steps=7", "--json")
    again = json.loads(lines("submit", str(folder), *same)[0])
    assert again["run_id"] == first
    assert server.home.run(first).resolved()["training"]["steps"] == 7
    (other,) = lines("submit", str(folder))
    assert other != first
    assert "training.stepz" in invoke("submit", str(folder), "--set", "training.stepz=7", code=2).stderr


def test_one_key_is_for_one_job(server: Server, folder: Path) -> None:
    """Another job with the key of a run is refused, with what differs; the run that exists is not returned silently."""
    key = ("--idempotency-key", "k")
    (first,) = lines("submit", str(folder), *key)
    said = invoke("submit", str(folder), *key, "--set", "training.steps=7", "--set", "seed=3", code=2).stderr
    assert f"--idempotency-key: got the key of {first}, for another job" in said
    assert "seed: 3 instead of 0; training.steps: 7 instead of 4" in said
    (folder / "model.py").write_text("def make(): ...\ndef loss(model, batch): return 1\n")
    said = invoke("submit", str(folder), *key, code=2).stderr
    assert "its code" in said
    assert lines("submit", str(folder), "--idempotency-key", "other") != [first]
    assert len(server.store.page()) == 2


class _Wire(httpx.BaseTransport):
    """A connection to a server that handles each request and then loses the answers to the first submissions."""

    def __init__(self, server: Server, losses: list[Exception | int], path: str) -> None:
        self.client, self.losses, self.submitted = TestClient(server.app, "http://testserver"), losses, 0
        self.path = path

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        submission = request.method == "POST" and request.url.path.endswith(self.path)
        self.submitted += submission
        loss = self.losses.pop(0) if submission and self.losses else None
        if isinstance(loss, httpx.ConnectError):
            raise loss
        if loss in (429, 503):  # refused
            return httpx.Response(cast("int", loss))
        answer = self.client.request(
            request.method, str(request.url), headers=dict(request.headers), content=request.read()
        )
        if isinstance(loss, Exception):
            raise loss
        return httpx.Response(loss or answer.status_code, content=answer.content)


def _lossy(
    server: Server, monkeypatch: pytest.MonkeyPatch, losses: list[Exception | int], path: str = "/runs"
) -> _Wire:
    wire = _Wire(server, losses, path)

    def connect(base_url: str, headers: dict[str, str], **_: Any) -> httpx.Client:
        return CLIENT(base_url=base_url, headers=headers, transport=wire)

    monkeypatch.setattr(client_module.httpx, "Client", connect)
    monkeypatch.setattr(transport, "wait_random_exponential", lambda *_: wait_none())
    monkeypatch.setattr(transport, "stop_after_delay", lambda _: stop_after_delay(0))
    return wire


LOST: list[Exception | int] = [
    httpx.ReadTimeout("timed out"),
    httpx.RemoteProtocolError("server disconnected"),
    httpx.WriteError("broken pipe"),
    504,
    502,
]


@given(st.lists(st.sampled_from([*LOST, httpx.ConnectError("refused"), 503, 429]), max_size=6))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_lost_answer_makes_no_second_run_and_no_false_word(
    server: Server, folder: Path, losses: list[Exception | int]
) -> None:
    """A submission has one run or an error, and only an error that says so leaves a run behind."""
    before = {run.id for run in server.store.page(1000)}
    with pytest.MonkeyPatch.context() as patch:
        wire = _lossy(server, patch, [*losses])
        result = CliRunner().invoke(app, ["submit", str(folder)])
    made = {run.id for run in server.store.page(1000)} - before
    assert wire.submitted == min(len(losses) + 1, 3)  # the time for retries is over, but there are always three
    maybe = any(loss in LOST for loss in losses[:3])
    if len(losses) < 3:
        assert result.exit_code == 0
        assert made == {result.stdout.strip()}
    else:
        assert result.exit_code == 1
        assert ("may have been accepted" in result.stderr) == maybe
        assert ("--idempotency-key once-" in result.stderr) == maybe
        assert len(made) <= maybe
        assert len(result.stderr.splitlines()) == 1
    if made and maybe and result.exit_code:  # the key in the message leads to the run
        key = result.stderr.partition("--idempotency-key ")[2].partition(":")[0]
        (found,) = lines("submit", str(folder), "--idempotency-key", key)
        assert {found} == made


@pytest.mark.parametrize("loss", LOST)
def test_what_is_not_repeatable_is_not_repeated(
    server: Server, monkeypatch: pytest.MonkeyPatch, loss: Exception | int
) -> None:
    make_run(server.home, "toy-1")
    wire = _lossy(server, monkeypatch, [loss], "/retry")
    said = invoke("retry", "toy-1", code=1).stderr
    assert wire.submitted == 1
    assert "may have done what was requested" in said or "too busy" in said


@pytest.mark.parametrize(("reason", "code"), [("completed", 0), ("hung", 1), ("cancelled", 130)])
def test_a_job_is_followed_to_its_end(reason: str, code: int, server: Server, folder: Path) -> None:
    def submit(*arguments: Any) -> Any:
        record = make(*arguments)
        facts = RunFacts(reason=reason, released=True)
        server.session.views[record.id] = RunView(record.id, "ended", 5, facts=facts)
        return record

    make = server.session.submit
    server.session.submit = submit  # type: ignore[method-assign]
    *_, last = lines("submit", str(folder), "--follow", "--json", code=code)
    assert json.loads(last)["reason"] == reason


def test_the_status_of_a_run(home: Home, server: Server) -> None:
    make_run(home, "toy-1", user="bob")
    progress = Progress(step=3, committed_step=2, restarts=1)
    server.store.save("toy-1", Training("d", PLACE, progress=progress), "Stepped()")
    server.session.views["toy-1"] = RunView(
        "toy-1", "training", step=3, steps=10, loss=1.23456, eval_loss=2.0, problem="rank 1 was killed"
    )
    said = lines("status", "toy-1")
    assert said[0] == "toy-1"
    found = {line[2:15].strip(): line[16:] for line in said[1 : said.index("  history")]}
    assert found["user"] == "bob"
    assert found["phase"] == "training"
    assert found["step"] == "3 of 10"
    assert found["checkpoint"] == "step 2"
    assert (found["loss"], found["eval loss"], found["restarts"]) == ("1.2346", "2.0000", "1")
    assert found["last error"] == "rank 1 was killed"
    assert "goodput" in found["time"]
    assert "worker hours" in found["cost"]
    assert "reason" not in found
    (entry,) = said[said.index("  history") + 1 :]
    assert entry.split()[2:] == ["training", "Stepped()"]
    everything = json.loads(lines("status", "toy-1", "--json")[0])
    assert everything["account"]["wall_s"] > 0
    assert everything["view"]["loss"] == 1.23456


def test_the_status_of_a_run_that_waits_or_has_ended(home: Home, server: Server) -> None:
    make_run(home, "toy-1")
    server.session.views["toy-1"] = RunView("toy-1", "queued", waiting="no node has a GPU")
    assert "  phase         queued: no node has a GPU" in lines("status", "toy-1")
    make_run(home, "toy-2")
    train(home, "toy-2", reason=Reason.USER_CODE, detail="ValueError: x")
    assert "  reason        user_code: ValueError: x" in lines("status", "toy-2")


def test_the_logs_of_a_run(home: Home, server: Server) -> None:
    make_run(home, "toy-1")
    server.log_line("toy-1", 0, "zero\n")
    server.log_line("toy-1", 1, "one\n")
    assert lines("logs", "toy-1") == ["rank-0: zero", "rank-1: one"]
    assert lines("logs", "toy-1", "--rank", "1") == ["one"]
    assert "no run 'other' in http://testserver" in invoke("logs", "other", code=2).stderr


@pytest.mark.parametrize(
    ("reason", "code"), [(Reason.COMPLETED, 0), (Reason.CANCELLED, 130), (Reason.PREPARE_FAILED, 1)]
)
def test_waiting_ends_as_the_run_did(reason: Reason, code: int, home: Home, server: Server) -> None:
    make_run(home, "toy-1")
    train(home, "toy-1", reason=reason)
    assert json.loads(lines("wait", "toy-1", "--json", code=code)[0])["reason"] == str(reason)
    assert lines("wait", "toy-1", code=code)[1].split()[:4] == ["toy-1", "ann", "ended", "4/4"]
    assert lines("wait", "toy-1", code=code)[1].endswith(str(reason))


def test_waiting_may_be_given_up(home: Home, server: Server) -> None:
    make_run(home, "toy-1")
    said = invoke("wait", "toy-1", "--timeout", "0", code=124).stderr
    assert said == "error: toy-1 has not ended within 0 s\n"


def test_a_run_is_cancelled_resumed_and_tried_again(home: Home, server: Server) -> None:
    make_run(home, "toy-1")
    assert lines("cancel", "toy-1")[1].split() == ["toy-1", "ann", "ended", "0/4", "0", "s", "cancelled"]
    assert lines("resume", "toy-1", "--server", "http://testserver")[1].split()[:4] == ["toy-1", "ann", "queued", "0/4"]
    assert json.loads(lines("retry", "toy-1", "--json")[0])["run_id"] == "toy-1-again"
    make_run(home, "other", user="bob")
    assert "other belongs to bob" in invoke("cancel", "other", code=1).stderr


def test_a_servers_runs_are_listed(home: Home, server: Server) -> None:
    for number in range(3):
        make_run(home, f"toy-{number}")
    shown = invoke("list", "--server", "http://testserver", "-n", "2")
    assert [line.split()[0] for line in shown.stdout.splitlines()] == ["run", "toy-2", "toy-1"]
    assert shown.stderr.splitlines() == [
        "only the newest 2 are shown; --limit N shows more, --all shows all",
        "server http://testserver",
    ]
    assert len(lines("list", "--server", "http://testserver", "--all", "--json")) == 3


def test_the_queue_says_why_each_waits(server: Server) -> None:
    header, first, second = lines("queue")
    assert header.split() == ["run", "user", "priority", "workers", "waits", "for"]
    assert first.split() == ["1", "toy-2", "bob", "5", "2", "no", "room"]
    assert second.split()[:5] == ["2", "toy-3", "ann", "0", "4"]
    assert second.endswith("data preparation")
    assert [json.loads(line)["run"] for line in lines("queue", "--json")] == ["toy-2", "toy-3"]


def test_nodes_and_who_has_them(server: Server) -> None:
    header, usable, draining, quarantined = lines("nodes")
    assert header.split() == ["node", "address", "state", "CPUs", "GPUs", "ranks"]
    assert usable.split() == ["aaaaaaaaaaaa", "10.0.0.1", "usable", "2/8", "1/1", "toy-1:", "2"]
    assert draining.split()[2] == "draining"
    assert quarantined.split()[2] == "quarantined"
    assert json.loads(lines("nodes", "--json")[0])["gpus_used"] == 1


# Tokens and the server --------------------------------------------------------------------------------------------


def test_tokens_of_a_home(home: Home) -> None:
    (secret,) = lines("token", "create", "--user", "tom")
    made = json.loads(lines("token", "create", "--user", "vera", "--role", "viewer", "--days", "1", "--json")[0])
    header, first, second = lines("token", "list")
    assert header.split() == ["id", "user", "role", "expires"]
    assert first.split()[1:] == ["tom", "user", "never"]
    assert second.split()[:3] == [made["id"], "vera", "viewer"]
    assert secret not in "".join(lines("token", "list", "--json"))
    assert lines("token", "revoke", made["id"]) == [f"revoked {made['id']}"]
    assert len(lines("token", "list")) == 2
    assert f"no token '{made['id']}'" in invoke("token", "revoke", made["id"], code=2).stderr
    assert "--role" in invoke("token", "create", "--user", "tom", "--role", "king", code=2).stderr


def test_a_token_that_has_expired_says_so(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = serving._tokens()
    _, info = tokens.create("tom", "user", days=1)
    assert isinstance(serving._expiry(info), str)
    text, color = serving._expiry(replace(info, expires=time.time() - 1))
    assert text.endswith("(expired)")
    assert color == "red"


def test_the_server_is_started_as_it_is_asked(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[ServerSettings] = []
    monkeypatch.setattr(serving, "serve", started.append)
    lines("server", "--host", "0.0.0.0", "--port", "0", "--behind-proxy", "--address", "head:6379")
    assert started == [ServerSettings("0.0.0.0", 0, None, None, True, "head:6379")]
    invoke("server", "--port", "70000", code=2)
    assert len(started) == 1


@pytest.mark.parametrize(("reason", "code"), [("cancelled", 130), ("budget_spent", 1), ("", 1)])
def test_what_is_not_complete_has_an_exit_code(reason: str, code: int) -> None:
    exit_as("completed")
    with pytest.raises(typer.Exit) as caught:
        exit_as(reason)
    assert caught.value.exit_code == code
