"""Several nodes that die and join; the coordinator is killed at every transition. Results are bit-identical."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from statistics import median

import pytest
from drivetrain.api.client import Client
from drivetrain.api.interface import RunInfo
from drivetrain.runs.store import RunStore
from drivetrain.runs.view import RunView

from tests.cluster.harness import Result, assert_same, step_gaps
from tests.cluster.service import Service, running_service
from tests.cluster.test_server import wait_for_step


def nodes_of(client: Client, run: str) -> set[str]:
    return {node["id"] for node in client.nodes() if run in node["ranks"]}


def head_node(service: Service) -> str:
    assert service.cluster
    return service.cluster.head_node.node_id  # type: ignore[no-any-return]


@pytest.mark.slow  # test_hosts kills whole machines
def test_a_killed_node_is_replaced(toy_job: Path, undisturbed: Result, tmp_path: Path) -> None:
    with running_service(tmp_path, cpus=(1, 1, 1)) as service, service.client() as client:
        run = client.submit(str(toy_job)).id
        wait_for_step(client, run, 10)
        lost = sorted(nodes_of(client, run) - {head_node(service)})[0]
        service.kill_node(lost)
        found = client.wait(run, 240)
        assert lost not in {node["id"] for node in client.nodes()}
    assert [entry.phase for entry in found.history].count("ready") == 2
    assert found.progress.restarts >= 1
    assert_same(Result.of(found, service.home), undisturbed)


@pytest.mark.slow  # simulations scale thousands of runs
def test_an_elastic_run_shrinks_and_grows(toy_job: Path, tmp_path: Path) -> None:
    """It starts with the available nodes, scales up, and continues with fewer when a node dies; no sample is lost.

    A rank is also killed. All of it is one MLflow run, and every second is accounted for.
    """
    with running_service(tmp_path, cpus=(1,)) as service, service.client() as client:
        overrides = ["resources.workers={min: 1, max: 2}", "training.steps=240", "checkpoint.every=20"]
        began = time.time()
        run = client.submit(str(toy_job), overrides).id
        view = wait_for_step(client, run, 15)
        assert len(nodes_of(client, run)) == 1
        os.kill(view.pids["rank-0"], signal.SIGKILL)
        next(v for v in client.watch(run) if v.generation == 2 and v.step > 15)
        service.add_node(1)
        grown = next(v for v in client.watch(run) if v.generation == 3 and v.step > 90)
        assert {"rank-0", "rank-1"} <= grown.pids.keys()
        lost = (nodes_of(client, run) - {head_node(service)}).pop()
        service.kill_node(lost)
        found = client.wait(run, 280)
        wall_s = time.time() - began
        account = found.account
        assert account
        audit = json.loads(service.command("audit", run, "--json").stdout)
    assert found.reason == "completed", found.facts
    assert "scaling up from 1 to 2 workers" in next(e.why for e in found.history if e.phase == "stopping")
    worlds = [size for _, size in audit["worlds"]]
    assert [size for size, _ in groupby(worlds)] == [1, 2, 1]
    assert audit["problems"] == []
    assert audit["steps"] == 240
    one_run_in_mlflow(found)
    assert list(Result.of(found, service.home).series("loss")) == list(range(1, 241))
    print(f"{wall_s:.1f} s, of which {account['seconds']}")
    assert sum(account["seconds"].values()) == pytest.approx(account["wall_s"])
    assert account["wall_s"] <= wall_s
    again = steps_done_again(service.home, run)
    print(f"{again} steps were done again")
    kills = 2  # a step whose report coincides with a kill may be counted as new
    assert 0.12 * (again - kills) <= account["seconds"]["recomputing"]


def one_run_in_mlflow(found: RunInfo) -> None:
    from mlflow import MlflowClient

    client, facts = MlflowClient(found.facts.mlflow_uri), found.facts
    (run,) = client.search_runs([client.get_run(facts.mlflow_run_id).info.experiment_id])
    assert run.info.run_id == facts.mlflow_run_id
    assert run.info.status == "FINISHED"


def steps_done_again(home: Path, run: str) -> int:
    """Return the repeated steps by the coordinator's records: the end of each generation and the start of the next."""
    reached = again = 0
    for _, _, state in RunStore(f"sqlite:///{home / 'drivetrain.db'}").history(run):
        if state.phase == "training":
            again += max(0, reached - state.progress.step)
        reached = max(reached, state.progress.step)
    return again


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Return a service for tests that do not harm a node."""
    with running_service(tmp_path_factory.mktemp("server-home")) as running:
        yield running


def test_coordinator_killed_at_every_transition(service: Service, toy_job: Path, undisturbed: Result) -> None:
    """Training does not notice."""
    with service.client() as client:
        run = client.submit(str(toy_job)).id
        away = []
        for phase in ("preparing", "placing", "starting", "training", "training", "finishing"):
            view = wait_for_phase(client, run, phase)
            killed = view.pids["coordinator"]
            os.kill(killed, signal.SIGKILL)
            began = time.monotonic()
            view_of_another(client, run, killed)
            away.append(round(time.monotonic() - began, 2))
        found = client.wait(run, 240)
    gaps, usual = step_gaps(service.home, run), step_gaps(undisturbed.home, undisturbed.run_id)
    late = [gap - same for gap, same in zip(gaps, usual, strict=True)]
    print(f"seconds until the next coordinator answered: {away}")
    print(f"seconds from step to step: median {median(gaps):.2f}, longest {max(gaps):.2f}")
    print(
        f"undisturbed: median {median(usual):.2f}, longest {max(usual):.2f}; a step took at most {max(late):.2f} longer"
    )
    assert len(gaps) == 39
    assert found.progress.generation == 1, found.history
    assert_same(Result.of(found, service.home), undisturbed)


@pytest.mark.parametrize("pauses", [100, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_a_paused_coordinator_is_no_failure(service: Service, toy_job: Path, pauses: int) -> None:
    """It responds late hundreds of times, once later than the agents' long polls last; nothing is restarted."""
    draw = random.Random(0)
    with service.client() as client:
        run = client.submit(str(toy_job), [f"training.steps={pauses}", "checkpoint.every=50"]).id
        coordinator = wait_for_step(client, run, 1).pids["coordinator"]
        for number in range(pauses):
            os.kill(coordinator, signal.SIGSTOP)
            time.sleep(12.0 if number == pauses // 2 else draw.uniform(0.005, 0.1))
            os.kill(coordinator, signal.SIGCONT)
            time.sleep(draw.uniform(0.005, 0.05))
        found = client.wait(run, 600)
    assert found.reason == "completed", found.facts
    assert (found.progress.generation, found.progress.restarts) == (1, 0), found.history
    assert len(Result.of(found, service.home).series("loss")) == pauses


LOST_CALLS = (
    "CoreWorkerService.grpc_client.PushTask",  # every call of an actor
    "NodeManagerService.grpc_client.RequestWorkerLease",
    "ray::rpc::NodeInfoGcsService.grpc_client.GetAllNodeInfo",
    "ray::rpc::ActorInfoGcsService.grpc_client.GetNamedActorInfo",
    "ray::rpc::ActorInfoGcsService.grpc_client.RegisterActor",
    "ray::rpc::ActorInfoGcsService.grpc_client.CreateActor",
    "ray::rpc::PlacementGroupInfoGcsService.grpc_client.CreatePlacementGroup",
    "ray::rpc::PlacementGroupInfoGcsService.grpc_client.GetNamedPlacementGroup",
)


@pytest.mark.parametrize(
    ("steps", "enough"),
    [
        pytest.param(40, 200, marks=pytest.mark.slow),  # pauses of the coordinator affect all runs equally
        pytest.param(300, 1000, marks=[pytest.mark.slow, pytest.mark.timeout(1200)]),
    ],
)
def test_lost_calls_are_no_failure(
    toy_job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, enough: int
) -> None:
    """Four of ten calls by Ray, or their answers, are lost; nothing is restarted."""
    faults = {"num_failures": -1, "req_failure_prob": 15, "resp_failure_prob": 15, "in_flight_failure_prob": 10}
    monkeypatch.setenv("RAY_testing_rpc_failure", json.dumps(dict.fromkeys(LOST_CALLS, faults)))

    def watch(client: Client, run: str) -> None:
        while not client.status(run).ended:
            pass

    with running_service(tmp_path) as service, service.client() as client:
        run = client.submit(str(toy_job), [f"training.steps={steps}", "checkpoint.every=50"]).id
        with ThreadPoolExecutor(40) as pool:
            for watcher in [pool.submit(watch, client, run) for _ in range(40)]:
                watcher.result()
        found = client.wait(run)
        assert service.cluster
        logs = Path(service.cluster.head_node.get_session_dir_path()) / "logs"
        lost = sum(log.read_text(errors="replace").count("Inject RPC") for log in logs.rglob("*.log"))
    print(f"{lost} calls or answers were lost")
    assert lost >= enough
    assert found.reason == "completed", found.facts
    assert (found.progress.generation, found.progress.restarts) == (1, 0), found.history
    assert len(Result.of(found, service.home).series("loss")) == steps


def view_of_another(client: Client, run: str, coordinator: int) -> RunView:
    """Return the first view from a coordinator that replaced the one with this process id."""
    return next(view for view in client.watch(run) if view.pids.get("coordinator", coordinator) != coordinator)


def wait_for_phase(client: Client, run: str, phase: str) -> RunView:
    """Return the first view at or after a phase: short phases may be over before the first look."""
    order = ["queued", "preparing", "ready", "placing", "starting", "training", "finishing", "ended"]
    for view in client.watch(run):
        if order.index(view.phase) >= order.index(phase):
            return view
    raise AssertionError(f"it ended before {phase}")
