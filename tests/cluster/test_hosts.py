"""Machines of their own, joined by a network that can be cut: what a real cluster does, on one machine."""

from __future__ import annotations

import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from drivetrain.client import Client
from drivetrain.server.access import Tokens

from tests.cluster.harness import COMMAND, Result
from tests.cluster.test_server import order_of_places, wait_for_step
from tests.hosts import Host, available, hosts

pytestmark = pytest.mark.skipif(not available(), reason="needs root, namespaces and iproute2")

RAY = Path(sys.executable).with_name("ray")
# A node that does not answer is dead after about 12 s instead of a minute.
QUICK_DEATH = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}


@dataclass
class Site:
    """A head without CPUs, and nodes of one CPU each, as an administrator sets them up."""

    head: Host
    nodes: dict[str, Host]  # by Ray's node id
    home: Path
    url: str

    def client(self, user: str, role: str = "user") -> Client:
        secret, _ = Tokens(f"sqlite:///{self.home / 'drivetrain.db'}").create(user, role)
        return Client(self.url, secret)


@contextmanager
def site(nodes: int, folder: Path) -> Iterator[Site]:
    """Ray with token authentication on every host, and the server beyond loopback, as if a proxy did TLS."""
    with hosts(nodes + 1, folder / "hosts") as (head, *others):
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), "RAY_USAGE_STATS_ENABLED": "0"}
        common = {**token, **QUICK_DEATH, "RAY_worker_niceness": "0", "DRIVETRAIN_HOME": str(folder / "home")}
        start = ["--num-gpus=0", "--disable-usage-stats"]
        first = [str(RAY), "start", "--head", "--port=6379", f"--node-ip-address={head.address}", "--num-cpus=0"]
        head.run(*first, "--include-dashboard=false", *start, **common)
        for host in others:
            join = [str(RAY), "start", f"--address={head.address}:6379", f"--node-ip-address={host.address}"]
            host.run(*join, "--num-cpus=1", *start, **common, GLOO_SOCKET_IFNAME="eth0")
        drivetrain = str(COMMAND)
        head.run(drivetrain, "token", "create", "--user", "root", "--role", "admin", **common)
        serve = ["--host", head.address, "--port", "8900", "--behind-proxy", "--address", f"{head.address}:6379"]
        server = head.start(drivetrain, "server", *serve, **common)
        try:
            assert server.stdout
            line = next((line for line in server.stdout if line.startswith("serving at ")), "")
            assert line, "the server did not start"
            made = Site(head, {}, folder / "home", line.split()[-1])
            with made.client("look", "viewer") as client:
                by_address = {host.address: host for host in others}
                made.nodes = {node["id"]: by_address[node["address"]] for node in client.nodes() if node["cpus"]}
            yield made
        finally:
            print((folder / "home" / "coordinator.log").read_text())  # shown where the test fails
            server.terminate()
            server.wait()
            server.stdout.close()  # type: ignore[union-attr]


def gang_hosts(here: Site, client: Client, run: str) -> list[str]:
    return sorted(node["id"] for node in client.nodes() if run in node["ranks"])


@pytest.mark.parametrize("how", ["cut off", pytest.param("powered off", marks=pytest.mark.slow)])
def test_a_host_is_lost_while_training(how: str, toy_job: Path, undisturbed: Result, tmp_path: Path) -> None:
    """The gang goes on on another one, and nobody can tell from its result."""
    with site(3, tmp_path) as here, here.client("ann") as client:
        run = client.submit(str(toy_job))["run_id"]
        wait_for_step(client, run, 10)
        victim, other = gang_hosts(here, client, run)
        began = time.monotonic()
        here.nodes[victim].cut() if how == "cut off" else here.nodes[victim].power_off()
        for view in client.watch(run):
            if view["phase"] == "training" and view["generation"] > 1 and view["step"]:
                break
        print(f"{how}: trains again after {time.monotonic() - began:.1f} s")
        placed = gang_hosts(here, client, run)
        assert victim not in placed
        assert other in placed
        found = client.wait(run, 240)
        assert found["reason"] == "completed", found["facts"]
        same = Result(0, run, found["facts"], found["view"], here.home, "")
        assert same.series("loss") == undisturbed.series("loss")
        assert same.weights_digest() == undisturbed.weights_digest()
        ray_asks_for_its_token(here)
        if how == "powered off":  # one that is cut off ends its ranks itself, when its lease does
            assert here.nodes[victim].processes() == []


def ray_asks_for_its_token(here: Site) -> None:
    script = "import ray; ray.init(address='auto'); print(len(ray.nodes()))"
    wrong = here.head.start(sys.executable, "-c", script, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="wrong" * 8)
    output, _ = wrong.communicate(timeout=120)
    assert wrong.returncode != 0
    assert "uthenticat" in output, output[-2000:]


@pytest.mark.slow
def test_two_users_share_hosts(toy_job: Path, tmp_path: Path) -> None:
    """Ten jobs of one, two and three hosts; those that wait for the same room get it by priority."""
    folder = tmp_path / "job"
    shutil.copytree(toy_job, folder)
    small = ["training.steps=4", "resources.preprocessors=1"]
    with site(3, tmp_path / "site") as here, here.client("ann") as ann, here.client("bob") as bob:
        blocker = ann.submit(str(folder), ["resources.workers=3", "scheduling.preemptible=false"])["run_id"]
        wait_for_step(ann, blocker, 1)
        shapes = [(1, 0), (1, 0), (3, 4), (2, 2), (1, 1), (3, 3), (2, 0), (1, 1), (1, 0)]
        wanted = [((ann, bob)[number % 2], *shape) for number, shape in enumerate(shapes)]
        runs = []
        for client, workers, priority in wanted:
            overrides = [f"resources.workers={workers}", f"scheduling.priority={priority}", *small]
            runs.append(client.submit(str(folder), overrides)["run_id"])
        ended = [ann.wait(run, 280) for run in (blocker, *runs)]
        large_first = order_of_places(ann, runs)[:2]
    assert {run["reason"] for run in ended} == {"completed"}
    assert [wanted[runs.index(run)][1:] for run in large_first] == [(3, 4), (3, 3)]
