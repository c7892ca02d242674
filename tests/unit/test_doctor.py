"""Findings of the doctor about a machine, its services and a cluster, with and without problems."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pynvml
import pytest
from drivetrain.api.client import Client
from drivetrain.cli import doctor as doctor_verb
from drivetrain.cli.app import app
from drivetrain.doctor import cluster, collectives, machine, services
from drivetrain.doctor.cluster import check_clock
from drivetrain.doctor.finding import Finding, Verdict, failed, ok, run_check, warning
from drivetrain.home import Home
from drivetrain_pipelines.spec import StorageSpec
from ray.exceptions import RayActorError
from typer.testing import CliRunner

from tests.unit.runs import home_in

GOOD = collectives.Outcome(right=True, bytes_per_s=1e9, backend="gloo")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(machine, "_PROBE_BYTES", 1 << 20)
    return home_in(tmp_path / "home", monkeypatch)


# Findings ---------------------------------------------------------------------------------------------------------


def test_a_finding_is_of_this_machine() -> None:
    assert ok("disk", "much").node == socket.gethostname()
    assert (ok("disk", "much").verdict, ok("disk", "much").fix) == (Verdict.OK, "")
    assert warning("disk", "little", "more").verdict is Verdict.WARNING
    assert failed("disk", "none", "more").fix == "more"


def test_a_check_that_raises_has_failed_with_its_fix() -> None:
    def check_function() -> Finding:
        raise ValueError("first line\nsecond line")

    found = run_check("tracker", check_function, "check the address")
    assert (found.verdict, found.found, found.fix) == (Verdict.FAILED, "ValueError: first line", "check the address")
    assert run_check("tracker", lambda: ok("tracker", "well"), "").verdict is Verdict.OK


# A machine --------------------------------------------------------------------------------------------------------


def test_installed_versions_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.versions().verdict is Verdict.OK
    needed = [
        "numpy>=999",
        "not-there-at-all",
        "pyarrow",
        "nothing-either; extra == 'cloud'",
        "absent; extra == 'train'",
    ]
    monkeypatch.setattr(metadata, "requires", lambda _: needed)
    found = machine.versions()
    assert found.verdict is Verdict.FAILED
    assert "not-there-at-all is missing" in found.found
    assert "absent is missing" in found.found
    assert "is not >=999" in found.found
    assert "pyarrow" not in found.found
    assert "nothing-either" not in found.found


@pytest.mark.parametrize(
    ("check", "free", "verdict"),
    [
        ("shared memory", 64 << 20, Verdict.FAILED),
        ("shared memory", 1 << 30, Verdict.WARNING),
        ("shared memory", 64 << 30, Verdict.OK),
        ("disk", 64 << 20, Verdict.FAILED),
        ("disk", 2 << 30, Verdict.WARNING),
        ("disk", 64 << 30, Verdict.OK),
    ],
)
def test_too_little_space_is_reported(
    check: str, free: int, verdict: Verdict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = SimpleNamespace(total=128 << 30, used=0, free=free)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage)
    found = machine.disk(tmp_path) if check == "disk" else machine.shared_memory()
    assert (found.check, found.verdict) == (check, verdict)
    assert f"{free / (1 << 30):.1f} GiB free" in found.found
    assert bool(found.fix) == (verdict is not Verdict.OK)


def _no_driver() -> None:
    raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)


@pytest.mark.parametrize(("devices", "verdict"), [([], Verdict.OK), (["/dev/nvidia0"], Verdict.FAILED)])
def test_devices_without_a_driver(devices: list[str], verdict: Verdict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.pynvml, "nvmlInit", _no_driver)
    monkeypatch.setattr(Path, "glob", lambda *_: iter(devices))
    assert machine.gpus().verdict is verdict


def test_gpus_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"nvmlInit": None, "nvmlShutdown": None, "nvmlDeviceGetCount": 2, "nvmlSystemGetDriverVersion": "570.1"}
    for name, answer in answers.items():
        monkeypatch.setattr(machine.pynvml, name, lambda answer=answer: answer)
    monkeypatch.setattr(machine.pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(machine.pynvml, "nvmlDeviceGetName", lambda index: f"GPU {index}")
    assert machine.gpus().found == "GPU 0, GPU 1; driver 570.1"


def test_storage_is_written_read_and_left_as_it_was(home: Home) -> None:
    found = machine.storage(str(home.path), StorageSpec())
    assert found.verdict is not Verdict.FAILED
    assert found.found.startswith("writes ")
    assert list(home.path.iterdir()) == []


def test_slow_storage_is_a_warning(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    for speed, verdict in ((1e15, Verdict.WARNING), (0.0, Verdict.OK)):
        monkeypatch.setattr(machine, "_MIN_BYTES_PER_S", speed)
        assert machine.storage(str(home.path), StorageSpec()).verdict is verdict


def test_storage_that_returns_other_data_is_rejected(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    system, folder = machine.open_storage(str(home.path), StorageSpec())
    monkeypatch.setattr(system, "cat_file", lambda _: b"something else")
    monkeypatch.setattr(machine, "open_storage", lambda *_: (system, folder))
    found = machine.storage(str(home.path), StorageSpec())
    assert (found.verdict, found.fix) == (Verdict.FAILED, "Do not use this storage.")
    assert list(home.path.iterdir()) == []


@pytest.mark.parametrize("location", ["file/inside", "s4://bucket"])
def test_storage_that_is_none(location: str, home: Home) -> None:
    (home.path / "file").write_text("no folder")
    where = location if "://" in location else str(home.path / location)
    found = machine.storage(where, StorageSpec())
    assert (found.verdict, found.check) == (Verdict.FAILED, f"storage {where}")
    assert found.fix


# Its services -----------------------------------------------------------------------------------------------------


@pytest.fixture
def nothing_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    monkeypatch.setattr(services.socket, "create_connection", refuse)


def findings(found: list[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in found}


def test_a_machine_without_services_has_no_problem(home: Home, nothing_listens: None) -> None:
    found = findings(services.examine(home))
    assert found.keys() == {"tracker", "token file", "server", "ports"}
    assert {finding.verdict for finding in found.values()} == {Verdict.OK}
    assert found["tracker"].found.startswith("embedded: sqlite:///")
    assert found["server"].found.startswith("none runs here")


def test_a_server_that_is_named_must_answer(home: Home, nothing_listens: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIVETRAIN_SERVER", "https://example.org")
    found = findings(services.examine(home))["server"]
    assert found.verdict is Verdict.FAILED
    assert "Connection refused" in found.found


def test_a_server_that_accepts_the_token(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    connected: list[tuple[str, int]] = []

    def create(address: tuple[str, int], timeout: float) -> Any:
        connected.append(address)
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setenv("DRIVETRAIN_SERVER", "https://example.org")
    monkeypatch.setenv("DRIVETRAIN_TOKEN", "dt_x")
    monkeypatch.setattr(services.socket, "create_connection", create)
    monkeypatch.setattr(Client, "me", lambda _: {"user": "ann", "role": "admin"})
    found = findings(services.examine(home))["server"]
    assert found.found == "https://example.org accepts this token: ann, admin"
    assert connected == [("example.org", 443)]


@pytest.mark.parametrize(("status", "verdict"), [(200, Verdict.OK), (403, Verdict.FAILED)])
def test_a_tracking_server_is_queried_with_its_password(
    status: int, verdict: Verdict, home: Home, nothing_listens: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(status, stream=httpx.ByteStream(b"{}"))

    def get(url: str, **options: Any) -> httpx.Response:
        del options["timeout"]
        with httpx.Client(transport=httpx.MockTransport(answer)) as client:
            return client.get(url, **options)

    monkeypatch.setattr(services.httpx, "get", get)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ann:secret@mlflow/")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "pass")
    found = findings(services.examine(home))["tracker"]
    assert found.verdict is verdict
    assert asked[0].url.path == "/api/2.0/mlflow/experiments/search"
    assert asked[0].headers["authorization"] == httpx.BasicAuth("ann", "pass")._auth_header


def test_a_database_in_a_folder_that_cannot_be_written(
    home: Home, nothing_listens: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services.os, "access", lambda *_: False)
    assert findings(services.examine(home))["tracker"].verdict is Verdict.FAILED


@pytest.mark.parametrize(("mode", "verdict"), [(0o600, Verdict.OK), (0o640, Verdict.WARNING), (0o604, Verdict.WARNING)])
def test_a_token_is_for_one_user(mode: int, verdict: Verdict, home: Home, nothing_listens: None) -> None:
    home.token_file.write_text("dt_x")
    home.token_file.chmod(mode)
    found = findings(services.examine(home))["token file"]
    assert found.verdict is verdict
    assert found.fix == ("" if verdict is Verdict.OK else f"chmod 600 {home.token_file}")


def test_ports_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    def listener(port: int, status: str) -> SimpleNamespace:
        return SimpleNamespace(laddr=SimpleNamespace(port=port), status=status)

    taken = [listener(6379, psutil.CONN_LISTEN), listener(8900, psutil.CONN_ESTABLISHED), SimpleNamespace(laddr=())]
    monkeypatch.setattr(services.psutil, "net_connections", lambda _: taken)
    assert services._ports().found == "8900 (drivetrain server) is free, 6379 (Ray) is in use"


# Sums -------------------------------------------------------------------------------------------------------------


def test_a_wrong_sum_is_reported() -> None:
    assert collectives.verdict("all-reduce", [GOOD, GOOD]).verdict is Verdict.OK
    assert collectives.verdict("all-reduce", [GOOD, replace(GOOD, right=False)]).verdict is Verdict.FAILED


def test_a_sum_is_as_fast_as_its_slowest() -> None:
    found = collectives.verdict("all-reduce", [GOOD, replace(GOOD, bytes_per_s=25e6)])
    assert found.found == "2 processes by gloo: 25 MB/s"
    assert collectives.all_reduce_failed("all-reduce", "refused").fix.startswith("Let nodes reach one another")


def said(code: str) -> subprocess.Popen[str]:
    """Start a process of an all-reduce that runs other code."""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_result_of_a_process() -> None:
    text = json.dumps({"right": True, "bytes_per_s": 1e9, "backend": "gloo"})
    assert collectives.outcome(said(f"print('a warning')\nprint('{text}')")) == GOOD


@pytest.mark.parametrize(
    ("code", "why"), [("raise ValueError('no way')", "ValueError: no way"), ("exit(3)", "it ended without output")]
)
def test_a_process_that_fails(code: str, why: str) -> None:
    with pytest.raises(RuntimeError, match=why):
        collectives.outcome(said(code))


def test_a_process_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectives, "_TIMEOUT_S", 0.1)
    process = said("import threading; threading.Event().wait()")
    with pytest.raises(RuntimeError, match="no answer from the other processes"):
        collectives.outcome(process)
    assert process.returncode


def test_gpus_that_ray_hides_are_seen_by_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(collectives.subprocess, "Popen", lambda words, env, **_: started.append((words, env)))
    collectives.start("file:///x", 1, 2)
    ((words, environment),) = started
    assert words[-3:] == ["file:///x", "1", "2"]
    assert "CUDA_VISIBLE_DEVICES" not in environment
    assert environment.keys() == os.environ.keys() - {"CUDA_VISIBLE_DEVICES"}


# A cluster --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("skew", "way", "verdict"),
    [(0.1, 0.01, Verdict.OK), (-0.8, 0.01, Verdict.WARNING), (7.0, 0.01, Verdict.FAILED), (7.0, 20.0, Verdict.OK)],
)
def test_clock_offsets_account_for_the_uncertainty(skew: float, way: float, verdict: Verdict) -> None:
    late = (100.0, 100.0 + skew + 30, 160.0)  # a slow answer is imprecise
    assert check_clock([late, (200.0, 200.0 + way / 2 + skew, 200.0 + way)]).verdict is verdict


Work = Callable[..., Any]


class Nodes:
    """A Ray cluster of two nodes whose functions run in this process.

    Attributes:
        does: what a node does instead of some work, by the node's name and the work's.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.does: dict[tuple[str, str], Work] = {}
        listed = [
            {"NodeID": name, "NodeManagerHostname": name, "NodeManagerAddress": f"10.0.0.{number}", "Alive": alive}
            for number, (name, alive) in enumerate((("a", True), ("b", True), ("dead", False)))
        ]
        monkeypatch.setattr(cluster.ray, "nodes", lambda: listed)
        monkeypatch.setattr(cluster.ray, "get", self._get)
        monkeypatch.setattr(cluster, "_on", self._on)
        monkeypatch.setattr(machine, "examine", lambda home: [ok("disk", f"much in {home}")])
        for name in ("a", "b"):
            self.does[name, "_free_port"] = lambda _: 4242
            self.does[name, "_join"] = lambda *_: GOOD

    def _on(self, node: Any, work: Work, *arguments: Any) -> Callable[[], Any]:
        return lambda: self.does.get((node.name, work.__name__), work)(*arguments)

    def _get(self, calls: Any, timeout: float) -> Any:
        return [call() for call in calls] if isinstance(calls, list) else calls()


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Nodes:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    return Nodes(monkeypatch)


def examined(home: Home) -> dict[tuple[str, str], Finding]:
    here = socket.gethostname()
    return {(finding.node.replace(here, "here"), finding.check): finding for finding in cluster.examine(home)}


def test_a_cluster_without_problems(home: Home, nodes: Nodes) -> None:
    found = examined(home)
    assert {finding.verdict for finding in found.values()} == {Verdict.OK}
    assert {("a", "disk"), ("b", "disk"), ("a", "clock"), ("b", "clock")} < found.keys()
    together = {check for node, check in found if node == "here"}
    assert together == {"Ray's token", "shared home", "same versions", "all-reduce between nodes"}
    assert found["here", "shared home"].found == f"all 2 nodes see {home.path}"
    assert list(home.path.iterdir()) == []


def test_a_node_that_does_not_see_the_home_is_reported(home: Home, nodes: Nodes) -> None:
    nodes.does["b", "_read"] = lambda _: ""
    found = examined(home)["here", "shared home"]
    assert found.verdict is Verdict.FAILED
    assert found.found.startswith("b cannot see")


def test_a_node_with_other_versions_is_reported(home: Home, nodes: Nodes) -> None:
    mine = cluster._versions()
    nodes.does["b", "_versions"] = lambda: (mine[0], "1.0", *mine[2:])
    found = examined(home)["here", "same versions"]
    assert found.verdict is Verdict.FAILED
    assert found.found == f"b has ray 1.0, not {mine[1]}"


def test_a_wrong_clock_is_reported_for_its_node(home: Home, nodes: Nodes) -> None:
    nodes.does["b", "_now"] = lambda: 0.0
    found = examined(home)
    assert (found["a", "clock"].verdict, found["b", "clock"].verdict) == (Verdict.OK, Verdict.FAILED)


def test_nodes_whose_all_reduce_fails(home: Home, nodes: Nodes) -> None:
    def hang(*_: object) -> None:
        raise TimeoutError("no answer from the other processes")

    nodes.does["b", "_join"] = hang
    found = examined(home)["here", "all-reduce between nodes"]
    assert (found.verdict, found.found) == (Verdict.FAILED, "no answer from the other processes")
    assert "GLOO_SOCKET_IFNAME" in found.fix


def test_a_node_that_does_not_answer_hides_no_other(home: Home, nodes: Nodes) -> None:
    def die(_: str) -> None:
        raise RayActorError

    nodes.does["b", "_look"] = die
    found = examined(home)
    assert found["b", "node"].verdict is Verdict.FAILED
    assert found["a", "disk"].verdict is Verdict.OK
    assert found["here", "shared home"].found.startswith("all 1 nodes")
    nodes.does["a", "_look"] = die
    assert {check for _, check in examined(home)} == {"node"}


def test_a_cluster_without_a_token_is_open(home: Home, nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE")
    assert examined(home)["here", "Ray's token"].verdict is Verdict.WARNING


# The verb ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("finding", "code"),
    [(warning("disk", "little", "Make room."), 0), (failed("disk", "[/none] in [a]", "Make room."), 1)],
)
def test_the_exit_code_says_whether_runs_will_fail(
    finding: Finding, code: int, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_verb.machine, "examine", lambda *_: [finding])
    monkeypatch.setattr(doctor_verb.services, "examine", lambda _: [ok("ports", "free")])
    monkeypatch.setattr(doctor_verb.collectives, "on_this_machine", lambda: ok("all-reduce", "fast"))
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == code, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["node", "check", "found"]
    assert [line.split()[1] for line in lines[1:4]] == ["disk", "ports", "all-reduce"]
    assert finding.found in lines[1]
    assert lines[4:] == [f"{finding.node}: disk: Make room."]
    found = [json.loads(line) for line in CliRunner().invoke(app, ["doctor", "--json"]).stdout.splitlines()]
    assert [each["verdict"] for each in found] == [str(finding.verdict), "ok", "ok"]


def test_a_cluster_is_checked_on_request(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[str | None] = []

    @contextmanager
    def connect(address: str | None) -> Iterator[None]:
        joined.append(address)
        yield

    monkeypatch.setattr(doctor_verb.machine, "examine", lambda *_: [])
    monkeypatch.setattr(doctor_verb.services, "examine", lambda _: [])
    monkeypatch.setattr(doctor_verb, "connect", connect)
    monkeypatch.setattr(doctor_verb.cluster, "examine", lambda _: [ok("clock", "right")])
    result = CliRunner().invoke(app, ["doctor", "--cluster", "--address", "head:6379", "--json"])
    assert [json.loads(line)["check"] for line in result.stdout.splitlines()] == ["clock"]
    assert joined == ["head:6379"]
