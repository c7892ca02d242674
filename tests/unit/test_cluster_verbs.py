"""`drivetrain cluster` without a cloud: requests to the cloud, output, and confirmation."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from drivetrain.cli import cluster as cluster_verbs
from drivetrain.cli.app import app
from drivetrain.cloud import launcher, preflight
from drivetrain.cloud.cluster_file import ClusterFile
from drivetrain.cloud.launcher import LauncherError, ensure_ray_token
from drivetrain_pipelines.errors import InputError
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_NODE_STATUS, TAG_RAY_USER_NODE_TYPE
from typer.testing import CliRunner

from tests.clock import Clock
from tests.cluster_files import Document, document, load


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClusterFile:
    monkeypatch.setenv("COLUMNS", "200")
    return load(tmp_path, document("aws"))


class Provider:
    """The machines of a cluster, as listed by Ray's node provider."""

    def __init__(self) -> None:
        self.tags: dict[str, dict[str, str]] = {}

    def add(self, node: str, kind: str, group: str) -> None:
        self.tags[node] = {
            TAG_RAY_NODE_KIND: kind,
            TAG_RAY_USER_NODE_TYPE: group,
            TAG_RAY_NODE_STATUS: "up-to-date",
        }

    def non_terminated_nodes(self, _: dict[str, str]) -> list[str]:
        return list(self.tags)

    def node_tags(self, node: str) -> dict[str, str]:
        return self.tags[node]

    def external_ip(self, node: str) -> str | None:
        return "52.0.0.1" if node == "i-1" else None

    def internal_ip(self, node: str) -> str | None:
        return "10.0.0.2" if node == "i-2" else None


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Provider:
    found = Provider()
    monkeypatch.setattr(launcher, "node_provider", lambda _: found)
    return found


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, provider: Provider) -> list[list[str]]:
    """Record the commands of Ray's launcher; `ray down` ends every machine."""
    done: list[list[str]] = []

    def run(command: list[str], check: bool, stdout: int) -> subprocess.CompletedProcess[str]:
        done.append([Path(command[0]).name, *command[1:]])
        if command[1] == "down":
            provider.tags.clear()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(launcher.subprocess, "run", run)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "ray" / "token"))
    return done


def invoke(*arguments: str, code: int = 0, answer: str | None = None) -> Result:
    result = CliRunner().invoke(app, ["cluster", *arguments], input=answer)
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result


# The launcher -----------------------------------------------------------------------------------------------------


def test_machines_are_those_that_the_cloud_has(file: ClusterFile, provider: Provider) -> None:
    provider.add("i-1", "head", "head")
    provider.add("i-2", "worker", "cpu")
    provider.add("i-3", "worker", "of an older file")
    head, worker, unknown = launcher.nodes(file)
    assert (head.id, head.kind, head.group, head.address, head.status) == (
        "i-1",
        "head",
        "head",
        "52.0.0.1",
        "up-to-date",
    )
    assert head.price == file.head.price
    assert (worker.address, worker.price) == ("10.0.0.2", file.workers[0].price)
    assert (unknown.address, unknown.price) == ("", None)


def test_a_cloud_that_cannot_be_asked_is_one_line(file: ClusterFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Document) -> None:
        raise RuntimeError("no credentials\nTraceback of a library")

    monkeypatch.setattr(launcher, "node_provider", fail)
    with pytest.raises(LauncherError) as caught:
        launcher.nodes(file)
    assert str(caught.value) == "aws cannot be queried: no credentials"
    assert invoke("status", str(file.path), code=1).stderr == "error: aws cannot be queried: no credentials\n"


def test_starting_brings_a_token_along(file: ClusterFile, commands: list[list[str]], tmp_path: Path) -> None:
    launcher.up(file)
    assert commands == [["ray", "up", str(file.path), "--yes", "--no-config-cache"]]
    token = tmp_path / "ray" / "token"
    assert re.fullmatch("[0-9a-f]{64}", token.read_text())
    assert token.stat().st_mode & 0o777 == 0o600
    assert ensure_ray_token() == token
    before = token.read_text()
    launcher.up(file)
    assert token.read_text() == before, "the cluster has it already"


def test_ending_waits_until_nothing_is_left(
    file: ClusterFile, commands: list[list[str]], provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [["i-1", "i-2"], ["i-2"], []]
    monkeypatch.setattr(launcher, "_POLL_INTERVAL_S", 0.0)
    monkeypatch.setattr(provider, "non_terminated_nodes", lambda _: left.pop(0))
    monkeypatch.setattr(provider, "node_tags", lambda _: {})
    launcher.down(file)
    assert left == []
    assert commands == [["ray", "down", str(file.path), "--yes"]]


def test_machines_that_stay_are_named(
    file: ClusterFile, commands: list[list[str]], provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()

    def pass_time(_: float) -> None:
        clock.now += 200

    monkeypatch.setattr(clock, "sleep", pass_time)
    monkeypatch.setattr(launcher, "time", clock)
    monkeypatch.setattr(provider, "non_terminated_nodes", lambda _: ["i-1", "i-2"])
    monkeypatch.setattr(provider, "node_tags", lambda _: {})
    with pytest.raises(LauncherError, match=r"machines still running and billed: i-1, i-2"):
        launcher.down(file)


def test_a_launcher_that_fails_is_an_error(file: ClusterFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    failed = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(launcher.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(LauncherError, match="`ray up"):
        launcher.up(file)
    with pytest.raises(LauncherError, match="`ray down"):
        launcher.down(file)


# Before it starts -------------------------------------------------------------------------------------------------


def test_a_cloud_without_its_client_is_refused(file: ClusterFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="pip install boto3") as caught:
        preflight.preflight(file)
    assert caught.value.where.endswith("provider.type")


def test_what_only_a_console_tells_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    assert preflight.preflight(load(tmp_path, document("gcp"))) == [
        "quotas and credentials of gcp; check them in its console"
    ]


class Amazon:
    """The answers of AWS: available machine types, and virtual CPUs by quota."""

    def __init__(self, offered: set[str], limit: float) -> None:
        self.offered, self.limit = offered, limit
        self.filters: list[Any] = []

    def client(self, name: str) -> Amazon:
        return self

    def get_caller_identity(self) -> None:
        pass

    def describe_instance_type_offerings(self, **wanted: Any) -> Document:
        self.filters.append(wanted)
        return {"InstanceTypeOfferings": [{"InstanceType": machine} for machine in sorted(self.offered)]}

    def describe_instance_types(self, InstanceTypes: list[str]) -> Document:  # noqa: N803  # boto3's name
        return {"InstanceTypes": [{"InstanceType": each, "VCpuInfo": {"DefaultVCpus": 8}} for each in InstanceTypes]}

    def get_service_quota(self, ServiceCode: str, QuotaCode: str) -> Document:  # noqa: N803  # boto3's names
        return {"Quota": {"Value": self.limit}}


@pytest.fixture
def amazon(file: ClusterFile, monkeypatch: pytest.MonkeyPatch) -> Amazon:
    found = Amazon({group.machine for group in (file.head, *file.workers)}, 1e6)
    monkeypatch.setattr("boto3.Session", lambda region_name: found)
    return found


def test_a_cluster_that_aws_would_start(file: ClusterFile, amazon: Amazon) -> None:
    assert preflight.preflight(file) == []
    (asked,) = amazon.filters
    kinds = {machine for each in asked["Filters"] if each["Name"] == "instance-type" for machine in each["Values"]}
    assert kinds == amazon.offered


def test_machines_that_a_zone_lacks_are_named(file: ClusterFile, amazon: Amazon) -> None:
    amazon.offered -= {"p4d.24xlarge"}
    with pytest.raises(InputError, match=r"p4d\.24xlarge") as caught:
        preflight.preflight(file)
    assert caught.value.where.endswith("available_node_types")


def test_a_quota_that_is_too_low_is_named(file: ClusterFile, amazon: Amazon) -> None:
    amazon.limit = 4
    with pytest.raises(InputError, match="at most 4, your quota") as caught:
        preflight.preflight(file)
    assert caught.value.where.endswith("max_workers")
    assert "Ask AWS to raise quota L-" in caught.value.fix


def test_credentials_that_aws_does_not_know(file: ClusterFile, amazon: Amazon, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import NoCredentialsError

    def fail() -> None:
        raise NoCredentialsError

    monkeypatch.setattr(amazon, "get_caller_identity", fail)
    with pytest.raises(InputError, match="aws configure"):
        preflight.preflight(file)


# The verbs --------------------------------------------------------------------------------------------------------


def test_a_dry_run_tells_the_price_and_starts_nothing(
    file: ClusterFile, amazon: Amazon, commands: list[list[str]]
) -> None:
    said = invoke("up", str(file.path), "--dry-run").stdout.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in said if line}
    assert rows["head"][1] == "1"
    assert rows["gpu-spot"][-2:] == ["spot", "10.49"]
    least, most = file.hourly_price()
    assert said[-1] == f"price: ${least:.2f} per hour when idle, ${most:.2f} per hour at its largest"
    assert commands == []


def test_up_and_down_print_json(
    file: ClusterFile, provider: Provider, amazon: Amazon, commands: list[list[str]]
) -> None:
    found = json.loads(invoke("up", str(file.path), "--dry-run", "--json").stdout)
    assert (found["cluster"], found["started"], commands) == (file.name, False, [])
    assert [group["name"] for group in found["groups"]] == [group.name for group in (file.head, *file.workers)]
    assert list(found["dollars_per_hour"].values()) == list(file.hourly_price())
    assert json.loads(invoke("up", str(file.path), "--json", "--yes").stdout)["started"]
    provider.add("i-1", "head", "head")
    assert json.loads(invoke("down", str(file.path), "--json", "--yes").stdout)["terminated"] == ["i-1"]


def test_nothing_starts_without_a_yes(file: ClusterFile, amazon: Amazon, commands: list[list[str]]) -> None:
    invoke("up", str(file.path), code=1, answer="n\n")
    assert commands == []
    invoke("up", str(file.path), answer="y\n")
    invoke("up", str(file.path), "--yes")
    assert [command[1] for command in commands] == ["up", "up"]


def test_an_unsafe_cluster_is_not_started(amazon: Amazon, commands: list[list[str]], tmp_path: Path) -> None:
    contents = document("aws")
    contents["worker_start_ray_commands"] = ["ray start --address=$RAY_HEAD_IP:6379"]
    path = load(tmp_path, contents).path
    assert "RAY_AUTH_MODE=token" in invoke("up", str(path), "--yes", code=2).stderr
    assert commands == amazon.filters == []


def test_machines_are_shown_with_their_price(file: ClusterFile, provider: Provider) -> None:
    assert invoke("status", str(file.path)).stdout.splitlines()[-1].startswith("0 heads, 0 workers: at most $0.00")
    provider.add("i-1", "head", "head")
    provider.add("i-2", "worker", "cpu")
    said = invoke("status", str(file.path)).stdout.splitlines()
    assert said[1].split() == ["i-1", "head", "head", "52.0.0.1", "up-to-date"]
    price = (file.head.price or 0) + (file.workers[0].price or 0)
    assert said[-1] == f"1 head, 1 worker: at most ${price:.2f} per hour"
    found = [json.loads(line) for line in invoke("status", str(file.path), "--json").stdout.splitlines()]
    assert [node["id"] for node in found] == ["i-1", "i-2"]


def test_machines_are_ended_after_a_yes(file: ClusterFile, provider: Provider, commands: list[list[str]]) -> None:
    provider.add("i-1", "head", "head")
    assert "Terminate 1 machine of" in invoke("down", str(file.path), code=1, answer="n\n").stdout
    assert commands == []
    assert "no machine is left" in invoke("down", str(file.path), answer="y\n").stdout
    assert commands == [["ray", "down", str(file.path), "--yes"]]
    invoke("down", str(file.path))  # no machine exists: no confirmation is needed


def test_pools_are_those_of_the_file(file: ClusterFile) -> None:
    found = yaml.safe_load(invoke("pools", str(file.path)).stdout)["pools"]
    groups = {group.name: group for group in file.workers}
    assert found.keys() == groups.keys()
    assert found["gpu"]["gpus"] == groups["gpu"].gpus
    assert found["gpu"]["max"] == groups["gpu"].most
    assert json.loads(invoke("pools", str(file.path), "--json").stdout)["pools"] == found


@contextmanager
def connected(_: str | None) -> Iterator[None]:
    yield


@pytest.fixture
def leaving(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], list[tuple[Any, ...]]]:
    """Have every node leave, in time or not; returns with what arguments."""
    asked: list[tuple[Any, ...]] = []

    def answer(gone: bool) -> list[tuple[Any, ...]]:
        def leave(*arguments: Any) -> bool:
            asked.append(arguments)
            return gone

        monkeypatch.setattr(cluster_verbs.nodes, "leave", leave)
        return asked

    monkeypatch.setattr(cluster_verbs, "connect", connected)
    monkeypatch.setattr(cluster_verbs.nodes, "this_node", lambda: ("node-1", "10.0.0.1:6379"))
    monkeypatch.setattr(cluster_verbs, "wait_for_notice", lambda _: 90.0)
    return answer


def test_a_node_leaves(leaving: Callable[[bool], list[tuple[Any, ...]]]) -> None:
    asked = leaving(True)
    assert invoke("leave").stdout == "this node is no longer in use\n"
    assert invoke("leave", "--within", "30").stdout == "this node is no longer in use\n"
    noticed = invoke("leave", "--on-notice", "aws", "--json")
    assert json.loads(noticed.stdout) == {"node": "node-1", "unused": True}
    assert noticed.stderr == "aws terminates this machine in 90 s\n"
    here = "node-1", "10.0.0.1:6379"
    assert asked == [(*here, 120.0, "asked to leave"), (*here, 30.0, "asked to leave"), (*here, 90.0, "aws")]


def test_a_node_that_is_still_in_use(leaving: Callable[[bool], list[tuple[Any, ...]]]) -> None:
    leaving(False)
    assert invoke("leave", "--within", "5", code=1).stdout == "this node is still in use after 5 s\n"


@pytest.mark.parametrize("words", [["--on-notice", "ibm"], ["--on-notice", "aws", "--within", "5"]])
def test_leaving_in_a_way_that_makes_no_sense(
    words: list[str], leaving: Callable[[bool], list[tuple[Any, ...]]]
) -> None:
    asked = leaving(True)
    assert invoke("leave", *words, code=2).stderr.startswith("error: ")
    assert asked == []
