"""Separate hosts in a network that can be cut: the behavior of a real cluster on one machine."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

import pytest
from drivetrain.api.client import Client
from drivetrain.server.access import Tokens

from tests.cluster.harness import COMMAND, LEISURE, Result, assert_same, step_gaps, wait_until
from tests.cluster.test_server import order_of_allocations, wait_for_step
from tests.hosts import Host, hosts, needs_hosts
from tests.metadata_service import give_notice, notice_of, serve_metadata

pytestmark = needs_hosts

RAY = Path(sys.executable).with_name("ray")
# An unresponsive node counts as dead after about 12 s instead of a minute.
QUICK_DEATH = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}
_RAY_OPTIONS = ["--num-gpus=0", "--disable-usage-stats"]


@dataclass
class Site:
    """A head without CPUs, and nodes with one CPU each, as set up by an administrator."""

    head: Host
    others: list[Host]
    home: Path
    environment: dict[str, str]
    nodes: dict[str, Host] = field(default_factory=dict)  # by Ray's node id
    url: str = ""
    server: subprocess.Popen[str] | None = None

    def client(self, user: str, role: str = "user") -> Client:
        secret, _ = Tokens(f"sqlite:///{self.home / 'drivetrain.db'}").create(user, role)
        return Client(self.url, secret)

    def start_head(self) -> None:
        first = [str(RAY), "start", "--head", "--port=6379", f"--node-ip-address={self.head.address}", "--num-cpus=0"]
        self.head.run(*first, "--include-dashboard=false", *_RAY_OPTIONS, **self.environment, GLOO_SOCKET_IFNAME="eth0")

    def join(self, host: Host) -> None:
        words = [str(RAY), "start", f"--address={self.head.address}:6379", f"--node-ip-address={host.address}"]
        host.run(*words, "--num-cpus=1", *_RAY_OPTIONS, **self.environment, GLOO_SOCKET_IFNAME="eth0")

    def serve(self) -> None:
        drivetrain, address = str(COMMAND), self.head.address
        serve = ["--host", address, "--port", "8900", "--behind-proxy", "--address", f"{address}:6379"]
        self.server = self.head.start(drivetrain, "server", *serve, **self.environment)
        assert self.server.stdout
        printed = []
        for line in self.server.stdout:
            printed.append(line)
            if line.startswith("serving at "):
                break
        assert printed[-1].startswith("serving at "), "".join(printed)
        self.url = line.split()[-1]

    def close(self) -> None:
        if self.server:
            self.server.terminate()
            self.server.wait()
            self.server.stdout.close()  # type: ignore[union-attr]


@contextmanager
def site(nodes: int, folder: Path) -> Iterator[Site]:
    """Start Ray with token authentication on every host, and the server on all interfaces, as behind a TLS proxy."""
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "DRIVETRAIN_HOME": str(folder / "home"),
        # The state of Ray's head is persistent.
        "RAY_gcs_storage": "rocksdb",
        "RAY_gcs_storage_path": str(folder / "gcs"),
        **QUICK_DEATH,
    }
    (folder / "gcs").mkdir(parents=True)
    with hosts(nodes + 1, folder / "hosts") as (head, *others):
        made = Site(head, others, folder / "home", environment)
        made.start_head()
        for host in others:
            made.join(host)
        head.run(str(COMMAND), "token", "create", "--user", "root", "--role", "admin", **environment)
        try:
            made.serve()
            with made.client("look", "viewer") as client:
                by_address = {host.address: host for host in others}
                made.nodes = {node["id"]: by_address[node["address"]] for node in client.nodes() if node["cpus"]}
            yield made
        finally:
            print((folder / "home" / "coordinator.log").read_text())  # shown if the test fails
            made.close()


def gang_hosts(here: Site, client: Client, run: str) -> list[str]:
    return sorted(node["id"] for node in client.nodes() if run in node["ranks"])


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cut off", "powered off"])
def test_a_host_is_lost_while_training(how: str, toy_job: Path, undisturbed: Result, tmp_path: Path) -> None:
    """The gang continues on another host, with the same result."""
    with site(3, tmp_path) as here, here.client("ann") as client:
        run = client.submit(str(toy_job)).id
        wait_for_step(client, run, 10)
        victim, other = gang_hosts(here, client, run)
        began = time.monotonic()
        here.nodes[victim].cut() if how == "cut off" else here.nodes[victim].power_off()
        for view in client.watch(run):
            if view.phase == "training" and view.generation > 1 and view.step:
                break
        print(f"{how}: trains again after {time.monotonic() - began:.1f} s")
        placed = gang_hosts(here, client, run)
        assert victim not in placed
        assert other in placed
        found = client.wait(run, 240)
        assert_same(Result.of(found, here.home), undisturbed)
        if how == "powered off":  # an agent that is cut off ends its ranks when its lease expires
            assert here.nodes[victim].processes() == []


@pytest.mark.slow  # unit tests cover notices and draining; tests/chaos covers preemption and resume
def test_a_spot_machine_is_left_before_it_is_taken(toy_job: Path, undisturbed: Result, tmp_path: Path) -> None:
    """On the cloud's notice the run saves and continues elsewhere, and no step is repeated."""
    with site(3, tmp_path) as here, here.client("ann") as client:
        refused, _ = here.head.start(str(COMMAND), "cluster", "leave", **here.environment).communicate(timeout=60)
        assert "got the head" in refused
        for host in here.nodes.values():
            serve_metadata(host)
            host.keep_running(str(COMMAND), "cluster", "leave", "--on-notice", "aws", **here.environment)
        run = client.submit(str(toy_job), [LEISURE]).id
        wait_for_step(client, run, 10)
        node = gang_hosts(here, client, run)[0]
        taken = here.nodes[node]
        began = time.monotonic()
        give_notice(notice_of(taken), datetime.now(UTC) + timedelta(seconds=60))
        wait_until(lambda: "this node is no longer in use" in taken.log.read_text())
        print(f"left {time.monotonic() - began:.1f} s after the notice")
        ray_asks_for_its_token(here)
        script = f"from drivetrain.cluster.nodes import leave; leave('unknown', '{here.head.address}:6379', 5, '')"
        again, _ = here.head.start(sys.executable, "-c", script, **here.environment).communicate(timeout=60)
        assert "node: got unknown; allowed: a node of the cluster" in again
        taken.power_off()
        found = client.wait(run, 240)
    stopping = next(entry for entry in found.history if entry.phase == "stopping")
    assert f"node {node[:12]} is draining" in stopping.why
    assert found.progress.restarts == 0
    assert_same(Result.of(found, here.home), undisturbed)


@pytest.mark.slow
def test_the_head_is_lost_while_training(toy_job: Path, tmp_path: Path) -> None:
    """Ranks continue without Ray's head, coordinator and server; after a restart these find the run."""
    longer = ["training.steps=150"]
    with site(2, tmp_path) as here:
        with here.client("ann") as client:
            before = client.wait(client.submit(str(toy_job), longer).id, 240)
            run = client.submit(str(toy_job), longer).id
            wait_for_step(client, run, 5)
        here.head.end_processes()
        here.close()
        began = time.monotonic()
        here.start_head()
        here.serve()
        with here.client("bea") as client:
            print(f"serves again after {time.monotonic() - began:.1f} s")
            view = wait_for_step(client, run, 6)
            print(f"step {view.step} is known after {time.monotonic() - began:.1f} s")
            found = client.wait(run, 240)
        assert_same(Result.of(found, here.home), Result.of(before, here.home))
        assert found.progress.generation == 1
        gaps = step_gaps(here.home, run)
        print(f"seconds from step to step: median {median(gaps):.2f}, longest {max(gaps):.2f}")


def ray_asks_for_its_token(here: Site) -> None:
    script = "import ray; ray.init(address='auto'); print(len(ray.nodes()))"
    wrong = here.head.start(sys.executable, "-c", script, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="wrong" * 8)
    output, _ = wrong.communicate(timeout=120)
    assert wrong.returncode != 0
    assert "uthenticat" in output, output[-2000:]


@pytest.mark.slow
def test_two_users_share_hosts(toy_job: Path, tmp_path: Path) -> None:
    """Ten jobs on one, two and three hosts; jobs that wait for the same resources start by priority."""
    folder = tmp_path / "job"
    shutil.copytree(toy_job, folder)
    small = ["training.steps=4", "resources.preprocessors=1"]
    with site(3, tmp_path / "site") as here, here.client("ann") as ann, here.client("bob") as bob:
        blocker = ann.submit(str(folder), ["resources.workers=3", "scheduling.preemptible=false"]).id
        wait_for_step(ann, blocker, 1)
        shapes = [(1, 0), (1, 0), (3, 4), (2, 2), (1, 1), (3, 3), (2, 0), (1, 1), (1, 0)]
        wanted = [((ann, bob)[number % 2], *shape) for number, shape in enumerate(shapes)]
        runs = []
        for client, workers, priority in wanted:
            overrides = [f"resources.workers={workers}", f"scheduling.priority={priority}", *small]
            runs.append(client.submit(str(folder), overrides).id)
        ended = [ann.wait(run, 280) for run in (blocker, *runs)]
        large_first = order_of_allocations(ann, runs)[:2]
    assert {run.reason for run in ended} == {"completed"}
    assert [wanted[runs.index(run)][1:] for run in large_first] == [(3, 4), (3, 3)]
