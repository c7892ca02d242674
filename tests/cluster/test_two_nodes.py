"""A gang on two nodes: two agents, a rendezvous over TCP, and the same result as on one node."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from tests.cluster.harness import Result, RunningJob


def test_two_agents(toy_job: Path, shared_home: Path, undisturbed: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_worker_niceness", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        job = RunningJob(["run", str(toy_job), f"--address={cluster.address}"], shared_home, own_ray=True)
        view = job.kill_part("agent-1", 12)
        result = job.finish()
    finally:
        cluster.shutdown()
    assert {"agent-0", "agent-1"} <= view["pids"].keys()
    assert result.code == 0, result.errors
    assert result.last_view["restarts"] in (
        1,
        2,
    )  # detected first as a lost peer, then as a lost agent, or both together
    assert result.series("loss") == undisturbed.series("loss")
    assert result.weights_digest() == undisturbed.weights_digest()
