"""A Drivetrain server as in production: a separate Ray cluster, the real command, clients over HTTP."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from drivetrain.api.client import Client
from drivetrain.server.access import Tokens
from ray.cluster_utils import Cluster

from tests.cluster.harness import COMMAND, wait_until_gone


class Service:
    """A server on a given cluster or on its own; `start` and `kill` may be called repeatedly."""

    def __init__(self, home: Path, cluster: Cluster | None = None) -> None:
        self.home, self.cluster = home, cluster
        self.lost: list[psutil.Process] = []  # processes of nodes that have died
        self.url = ""
        self._process: subprocess.Popen[str] | None = None
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed by stop()

    @property
    def environment(self) -> dict[str, str]:
        """For commands on the server's machine."""
        return {**os.environ, "DRIVETRAIN_HOME": str(self.home), "DRIVETRAIN_SERVER": self.url}

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def start(self) -> None:
        """Begin to serve, at the same port as before."""
        port = self.url.rpartition(":")[2] or "0"
        self._process = subprocess.Popen(
            [str(COMMAND), "server", "--port", port, *(["--address", self.cluster.address] if self.cluster else [])],
            env={**os.environ, "DRIVETRAIN_HOME": str(self.home)},
            stdout=subprocess.PIPE,
            stderr=self._output,
            text=True,
        )
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("serving at "):
                self.url = line.split()[-1]
                return
        raise AssertionError(self.errors())

    def add_node(self, cpus: int) -> None:
        """Add a node to the cluster."""
        assert self.cluster
        self.cluster.add_node(num_cpus=cpus)

    def kill_node(self, node_id: str) -> None:
        """Kill a node."""
        assert self.cluster
        (node,) = (node for node in self.cluster.worker_nodes if node.node_id == node_id)
        for each in node.all_processes.values():
            self.lost += psutil.Process(each[0].process.pid).children(recursive=True)
        self.cluster.remove_node(node, allow_graceful=False)

    def kill(self) -> None:
        """SIGKILL the server."""
        assert self._process
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Stop the server as an administrator does."""
        if self._process and self._process.poll() is None:
            self._end(signal.SIGTERM)
        self._output.close()

    def _end(self, number: int) -> None:
        assert self._process
        assert self._process.stdout
        self._process.send_signal(number)
        self._process.wait(timeout=30)
        self._process.stdout.close()

    def client(self, user: str = "", role: str = "user") -> Client:
        """Return a client with a new token of a user; without a user, with the first token of the server."""
        if not user:
            return Client(self.url, (self.home / "token").read_text())
        secret, _ = Tokens(f"sqlite:///{self.home / 'drivetrain.db'}").create(user, role)
        return Client(self.url, secret)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `drivetrain` on the server's machine."""
        return subprocess.run(
            [str(COMMAND), *arguments], env=self.environment, capture_output=True, text=True, check=False, timeout=240
        )

    def errors(self) -> str:
        self._output.seek(0)
        return self._output.read()


@contextmanager
def running_service(home: Path, cpus: tuple[int, ...] = (2,)) -> Iterator[Service]:
    """Run a server on a new Ray cluster with one node per entry of ``cpus``."""
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # as Ray calls it
    before = set(psutil.Process().children(recursive=True))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus[0], "include_dashboard": False})
    try:
        for count in cpus[1:]:
            cluster.add_node(num_cpus=count)
        cluster.wait_for_nodes()
        service = Service(home, cluster)
        service.start()
        try:
            yield service
        finally:
            ours = {*psutil.Process().children(recursive=True), *service.lost} - before
            service.stop()
    finally:
        cluster.shutdown()
        del os.environ["RAY_worker_niceness"]  # noqa: SIM112  # as Ray calls it
    assert not wait_until_gone(list(ours), 30)
