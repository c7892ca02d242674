"""infra/local: the complete stack, started as in its README; a run on it; and its metrics in Prometheus."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from drivetrain.api.client import Client

from tests.cluster.harness import LEISURE, wait_until_gone
from tests.infra.tools import INFRA
from tests.packages import needs

# Slow: six services. A server, an MLflow server and PostgreSQL are each tested elsewhere, and scripts by test_files.py.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), needs("prometheus", "psql")]
NOTHING_TO_TELL = ("gpu", "gram", "queue_length")  # on a machine without GPUs, with an empty queue


class Stack:
    """The stack; it runs until `stop`.

    Attributes:
        environment: of those who use it.
    """

    def __init__(self, folder: Path) -> None:
        names = ("POSTGRES", "MLFLOW", "PROMETHEUS", "SERVER", "RAY")
        self.ports = {f"{name}_PORT": str(free_port()) for name in names} | {"S3_PORT": str(_free_block(8))}
        self._folder = folder / "stack"
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._log = folder / "log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [str(INFRA / "local" / "up.sh")],
                env={**os.environ, **self.ports, "PATH": path, "STACK": str(self._folder)},
                stdout=log,
                stderr=log,
            )
        wait_until(self._serves, self.said, 240)
        lines = (self._folder / "environment").read_text().splitlines()
        words = [word for line in lines if line.startswith("export ") for word in line.split()[1:]]
        self.environment = dict(word.split("=", 1) for word in words)
        self.processes = psutil.Process(self._process.pid).children(recursive=True)

    def client(self) -> Client:
        token = (Path(self.environment["DRIVETRAIN_HOME"]) / "token").read_text().strip()
        return Client(self.environment["DRIVETRAIN_SERVER"], token)

    def ask_prometheus(self, path: str, **parameters: str) -> Any:
        uri = f"http://127.0.0.1:{self.ports['PROMETHEUS_PORT']}/api/v1/{path}"
        answer = httpx.get(uri, params=parameters).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def said(self) -> str:
        return self._log.read_text()[-5000:]

    def stop(self) -> None:
        everything = psutil.Process(self._process.pid).children(recursive=True)
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(timeout=60)
        assert not wait_until_gone(everything, 30)

    def _serves(self) -> bool:
        assert self._process.poll() is None, self.said()
        return self._answers("SERVER_PORT") and self._answers("PROMETHEUS_PORT")

    def _answers(self, port: str) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(self.ports[port]))) == 0


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with tempfile.TemporaryDirectory(prefix="drivetrain-stack-") as name:  # pytest's folders are private
        folder = Path(name)
        folder.chmod(0o711)  # PostgreSQL runs as another user
        made = Stack(folder)
        yield made
        made.stop()


@pytest.fixture(scope="module")
def run(stack: Stack, toy_job: Path) -> Iterator[str]:
    """Return an active run that has trained for some scrapes."""
    with stack.client() as client:
        found = client.submit(str(toy_job), [LEISURE, "training.steps=400"]).id
        wait_until(lambda: len(samples(stack, f'drivetrain_run_step{{run="{found}"}}[10m]')) >= 3, stack.said, 240)
        yield found
        client.cancel(found)
        assert client.wait(found, 120).reason == "cancelled"


def samples(stack: Stack, query: str) -> list[Any]:
    found = stack.ask_prometheus("query", query=query)["result"]
    return found[0]["values"] if found else []


def test_all_that_listens_is_on_loopback(stack: Stack, run: str) -> None:
    ours = {process.pid for process in stack.processes}
    found = [c for c in psutil.net_connections("inet") if c.pid in ours and c.status == psutil.CONN_LISTEN]
    assert {connection.laddr.ip.removeprefix("::ffff:") for connection in found} == {"127.0.0.1"}, found


def test_runs_are_in_postgresql_and_mlflow(stack: Stack, run: str) -> None:
    ask = ["psql", "--no-password", "--tuples-only", "--no-align", "--command", "SELECT id FROM runs"]
    database = stack.environment["DRIVETRAIN_DATABASE_URL"]
    assert subprocess.check_output([*ask, database], text=True).split() == [run]
    without_password = re.sub(r":[^:@]*@", "@", database)
    assert subprocess.run([*ask, without_password], check=False, capture_output=True).returncode != 0
    uri = stack.environment["MLFLOW_TRACKING_URI"]
    search = f"{uri}/api/2.0/mlflow/experiments/search?max_results=10"
    assert httpx.get(search).status_code == 401
    user = (stack.environment["MLFLOW_TRACKING_USERNAME"], stack.environment["MLFLOW_TRACKING_PASSWORD"])
    experiments = httpx.get(search, auth=user).json()["experiments"]
    assert "toy" in {experiment["name"] for experiment in experiments}
    toy = next(experiment for experiment in experiments if experiment["name"] == "toy")
    assert toy["artifact_location"].startswith("mlflow-artifacts:")
    objects = f"{stack.environment['AWS_ENDPOINT_URL']}/mlflow"
    assert httpx.get(objects).status_code == 403


def queries() -> list[str]:
    """Return the queries of all panels and alerts."""
    found = []
    for path in sorted((INFRA / "monitoring" / "dashboards").glob("*.json")):
        panels = json.loads(path.read_text())["panels"]
        found += [target["expr"] for panel in panels for target in panel["targets"]]
    groups = yaml.safe_load((INFRA / "monitoring" / "alerts.yml").read_text())["groups"]
    return found + [_without_threshold(rule["expr"]) for group in groups for rule in group["rules"]]


def _without_threshold(expression: str) -> str:
    """Return the expression of an alert without its threshold."""
    return re.sub(r" (==|<|>) (bool )?[\d.]+.*$", "", expression)


def test_every_query_is_answered(stack: Stack, run: str) -> None:
    for query in queries():
        found = stack.ask_prometheus("query", query=query.replace("$run", ".*"))["result"]
        assert found or any(word in query for word in NOTHING_TO_TELL), query


def test_alerts_are_loaded_and_quiet(stack: Stack, run: str) -> None:
    (groups,) = stack.ask_prometheus("rules").values()
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == 9
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
    assert {rule["state"] for rule in rules if rule["name"] != "RayNodeMemoryFull"} <= {"inactive", "pending"}


def test_ray_and_drivetrain_are_scraped(stack: Stack, run: str) -> None:
    targets = stack.ask_prometheus("targets")["activeTargets"]
    health = {(target["labels"]["job"], target["health"]) for target in targets}
    assert {("drivetrain", "up"), ("ray", "up")} <= health, [target["lastError"] for target in targets]


def wait_until(true: Callable[[], bool], said: Callable[[], str], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, said()
        time.sleep(1)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _free_block(count: int) -> int:
    """Return the first port of a block of free ports."""
    for first in range(20000, 30000, count):
        ports = range(first, first + count)
        with socket.socket() as probe:
            if all(probe.connect_ex(("127.0.0.1", port)) for port in ports):
                return first
    raise AssertionError("no ports")
