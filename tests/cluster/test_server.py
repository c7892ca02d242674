"""A shared server: permissions, and runs that outlive the server."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from drivetrain.api.client import Client
from drivetrain.errors import NotFoundError, ServerError
from drivetrain.runs.view import RunView
from drivetrain_pipelines.errors import InputError
from mlflow import MlflowClient
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.cluster.harness import LEISURE, Result, assert_same, wait_until
from tests.cluster.service import Service, running_service
from tests.repository import make_repository


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("server-home")) as running:
        yield running


def order_of_allocations(clients: Client, runs: list[str]) -> list[str]:
    """Return the runs in the order of their first allocation."""
    first = {}
    for run in runs:
        history = clients.status(run).history
        first[run] = next(entry.time for entry in history if entry.phase == "placing")
    return sorted(runs, key=lambda run: first[run])


@pytest.mark.parametrize(
    "wanted",
    [
        [("ann", 0), ("ann", 5), ("bob", 0), ("bob", 5)],
        pytest.param(
            [*(("ann", priority) for priority in (0, 0, 5, 1)), *(("bob", priority) for priority in (0, 0, 1, 5, 0))],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["five jobs", "ten jobs"],
)
def test_two_users(service: Service, toy_job: Path, short_job: Path, wanted: list[tuple[str, int]]) -> None:
    """Jobs run in the order of the policy: priority, then the smaller share, then age."""
    with service.client("ann") as ann, service.client("bob") as bob:
        blocker = ann.submit(str(toy_job), ["scheduling.preemptible=false", "scheduling.priority=9"]).id
        wait_for_step(ann, blocker, 1)
        clients = {"ann": ann, "bob": bob}
        runs = [
            clients[user].submit(str(short_job), [f"scheduling.priority={priority}", "resources.preprocessors=1"]).id
            for user, priority in wanted
        ]
        assert len({*runs, blocker}) == len(wanted) + 1
        log = list(bob.logs(runs[wanted.index(("bob", 5))], rank=0, follow=True))
        ended = [ann.wait(run, 240) for run in (blocker, *runs)]
        assert {(run.reason, run.facts.detail) for run in ended} == {("completed", "all steps are done")}
        order = [wanted[runs.index(run)] for run in order_of_allocations(ann, runs)]
    assert [priority for _, priority in order] == sorted((priority for _, priority in wanted), reverse=True)
    assert order[0][0] == "bob", "ann has had the whole cluster for the blocker's time"
    assert log.count("a loss is computed") >= 4
    with service.client("cy", "viewer") as viewer:
        assert {run.id for run in viewer.list()} >= {*runs, blocker}
        assert {run.user for run in viewer.list(user="bob")} == {"bob"}
        assert viewer.queue() == []


@pytest.mark.slow  # the policy's tests cover the choice of the gang; tests/chaos covers preemption and resume
def test_preempted_and_none_the_worse(service: Service, toy_job: Path, short_job: Path, undisturbed: Result) -> None:
    with service.client("ann") as ann, service.client("bob") as bob:
        low = ann.submit(str(toy_job), [LEISURE]).id
        wait_for_step(ann, low, 10)
        high = bob.submit(str(short_job), ["scheduling.priority=3"]).id
        assert bob.wait(high, 240).reason == "completed"
        found = ann.wait(low, 240)
    phases = [entry.phase for entry in found.history]
    assert phases.count("ready") == 2
    assert "preempted by" in next(e.why for e in found.history if e.phase == "stopping")
    assert found.reason == "completed"
    assert (found.progress.failures, found.progress.restarts) == ({}, 0)
    assert_same(Result.of(found, service.home), undisturbed)


def test_cancel_leaves_no_process(service: Service, toy_job: Path) -> None:
    with service.client("ann") as ann:
        run = ann.submit(str(toy_job)).id
        view = wait_for_step(ann, run, 3)
        began = time.monotonic()
        ann.cancel(run)
        found = ann.wait(run, 60)
        print(f"ended {time.monotonic() - began:.1f} s after it was asked to")
        assert found.reason == "cancelled"
        mine = [pid for part, pid in view.pids.items() if part != "coordinator"]
        assert len(mine) == 4
        assert not psutil.wait_procs([p for p in psutil.process_iter() if p.pid in mine], timeout=5)[1]
        assert ann.resume(run).phase != "ended"
        assert ann.wait(run, 240).reason == "completed"


def test_killed_server_is_not_missed(service: Service, toy_job: Path, undisturbed: Result) -> None:
    """Runs continue without it, and clients wait for it."""
    with service.client("ann") as ann:
        run = ann.submit(str(toy_job)).id
        wait_for_step(ann, run, 5)
        service.kill()
        service.start()
        found = ann.wait(run, 240)
    assert found.reason == "completed"
    assert found.progress.generation == 1
    assert_same(Result.of(found, service.home), undisturbed)


def test_the_same_key_twice_makes_one_run(service: Service, short_job: Path) -> None:
    with service.client("ann") as ann, service.client("bob") as bob:
        first = ann.submit(str(short_job), idempotency_key="nightly")
        assert ann.submit(str(short_job), idempotency_key="nightly").id == first.id
        other = bob.submit(str(short_job), idempotency_key="nightly")
        assert other.id != first.id
        with pytest.raises(ServerError, match="needs the role admin"):
            bob.cancel(first.id)
        with service.client() as admin:
            admin.cancel(first.id)
        bob.cancel(other.id)
        again = ann.retry(first.id)
        assert again.id != first.id
        ann.cancel(again.id)
        assert [c.wait(r.id, 240).ended for c, r in ((ann, first), (bob, other), (ann, again))] == [True] * 3


def test_the_git_state_of_the_code_is_submitted(service: Service, short_job: Path, tmp_path: Path) -> None:
    """The server has only a copy of the folder; the repository stays with the user."""
    folder = tmp_path / "short"
    shutil.copytree(short_job, folder)
    commit = make_repository(folder)
    with (folder / "toy_loss.py").open("a") as code:
        code.write("# not committed\n")
    with service.client("ann") as ann:
        first = ann.wait(ann.submit(str(folder)).id, 240)
        again = ann.wait(ann.retry(first.id).id, 240)
    tracker = MlflowClient(first.facts.mlflow_uri)
    for found in (first, again):
        run_id = found.facts.mlflow_run_id
        tags = tracker.get_run(run_id).data.tags
        assert (tags["drivetrain.git_commit"], tags["drivetrain.git_dirty"]) == (commit, "True")
        difference = Path(tracker.download_artifacts(run_id, "uncommitted.diff")).read_text()
        assert "+# not committed" in difference
        assert {metric.value for metric in tracker.get_metric_history(run_id, "world_size")} == {2}


def test_wrong_jobs_make_no_run(service: Service, toy_job: Path, tmp_path: Path) -> None:
    with service.client("ann") as ann:
        before = len(ann.list())
        for override, where in (
            ("training.stepz=3", "training.stepz"),
            ("resources.workers=500", "training.global_batch_size"),
            ("scheduling.queue=gold", "scheduling.queue"),
            ("data.source=nowhere.txt", "data.source"),
        ):
            with pytest.raises(InputError) as caught:
                ann.submit(str(toy_job), [override])
            assert caught.value.where == where
        with pytest.raises(InputError, match=r"resources\.workers"):
            ann.submit(str(toy_job), ["resources.workers=8"])
        with pytest.raises(NotFoundError, match="no run 'nothing'"):
            ann.status("nothing")
        assert len(ann.list()) == before


def wait_for_step(client: Client, run: str, step: int) -> RunView:
    for view in client.watch(run):
        if view.phase == "training" and view.step >= step:
            return view
    raise AssertionError("it ended first")


def test_prometheus_metrics(service: Service, toy_job: Path) -> None:
    """For a run with one failure, during and after training."""
    with service.client("pam", "viewer") as viewer, service.client("ann") as ann:
        run = ann.submit(str(toy_job)).id
        os.kill(wait_for_step(ann, run, 3).pids["rank-0"], signal.SIGKILL)
        next(view for view in ann.watch(run) if view.generation == 2 and view.phase == "training")
        live = metrics_of(service, viewer)
        ann.wait(run, 240)
        # Recent transitions may not be stored yet, and are not counted.
        wait_until(lambda: value(metrics_of(service, viewer), "drivetrain_recoveries_total", reason="rank_killed") != 0)
        after = metrics_of(service, viewer)
    mine = {"run": run, "user": "ann"}
    for name in ("step", "steps", "step_seconds", "loss", "data_wait_ratio", "goodput_ratio"):
        assert value(live, f"drivetrain_run_{name}", **mine) is not None, name
    assert 0 < value(live, "drivetrain_run_goodput_ratio", **mine) < 1
    assert value(live, "drivetrain_run_time_seconds", **mine, **{"class": "recovering"}) > 0
    assert value(live, "drivetrain_runs", phase="training") == 1
    assert value(live, "drivetrain_cpus", state="used") == 2
    assert value(after, "drivetrain_run_step", **mine) is None
    assert value(after, "drivetrain_recoveries_total", reason="rank_killed") == 1
    assert value(after, "drivetrain_runs_ended_total", reason="completed") >= 1
    assert value(after, "drivetrain_admissions_total") >= 1


def metrics_of(service: Service, client: Client) -> list[Sample]:
    text = httpx.get(f"{service.url}/metrics", headers={"Authorization": client._http.headers["authorization"]}).text
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def value(samples: list[Sample], name: str, **labels: str) -> float | None:
    found = [sample.value for sample in samples if (sample.name, sample.labels) == (name, labels)]
    return found[0] if found else None


# Access ----------------------------------------------------------------------------------------------------------


def routes(service: Service) -> list[tuple[str, str]]:
    """Return method and path of every operation in the OpenAPI document."""
    token = (service.home / "token").read_text()
    document = httpx.get(f"{service.url}/v1/openapi.json", headers={"Authorization": f"Bearer {token}"}).json()
    return [(method, path) for path, methods in document["paths"].items() for method in methods]


def test_every_route_asks_for_a_token(service: Service) -> None:
    with service.client("vera", "viewer") as viewer, service.client("ute", "user") as user:
        viewers, users = ({"Authorization": client._http.headers["authorization"]} for client in (viewer, user))
    found = routes(service)
    assert len(found) == 24
    for method, path in found:
        url = service.url + re.sub(r"{\w+}", "x", path)
        assert httpx.request(method, url).status_code == 401, path
        for wrong in ("Bearer dt_wrong", "Bearer", "Basic eDp4", viewers["Authorization"][:-1]):
            assert httpx.request(method, url, headers={"Authorization": wrong}).status_code == 401, (path, wrong)
        for_admins = "/tokens" in path
        changes = for_admins or method != "get" or "/packages" in path
        assert (httpx.request(method, url, headers=viewers).status_code == 403) is changes, (method, path)
        assert (httpx.request(method, url, headers=users).status_code == 403) is for_admins, (method, path)
    for hidden in ("/docs", "/redoc", "/openapi.json", "/"):
        assert httpx.get(service.url + hidden).status_code == 404


def test_tokens_are_made_listed_and_revoked(service: Service) -> None:
    made = json.loads(service.command("token", "create", "--user", "tom", "--role", "viewer", "--json").stdout)
    with Client(service.url, made["token"]) as tom:
        assert tom.list(user="tom") == ()
        assert made["id"] in service.command("token", "list").stdout
        assert service.command("token", "revoke", made["id"]).returncode == 0
        with pytest.raises(ServerError, match="the token is unknown") as caught:
            tom.list()
        assert caught.value.status == 401


def test_too_much_is_refused(service: Service) -> None:
    token = (service.home / "token").read_text()
    huge = {"Authorization": f"Bearer {token}", "Content-Length": str(1 << 40)}
    address = service.url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1]))) as connection:
        lines = "".join(f"{key}: {value}\r\n" for key, value in huge.items())
        connection.sendall(f"PUT /v1/packages/x HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode())
        assert b" 413 " in connection.recv(1000)
    with httpx.Client() as client:
        answers = [client.get(f"{service.url}/v1/me").status_code for _ in range(1500)]
    assert set(answers) == {401, 429}
