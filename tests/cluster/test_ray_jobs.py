"""Ray's job queue instead of our server."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from drivetrain.runs.store import RunStore
from ray.cluster_utils import Cluster

from tests.cluster.harness import Result, assert_same

RAY = Path(sys.executable).with_name("ray")


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the address of a cluster's job server."""
    monkeypatch.setenv("PATH", f"{RAY.parent}:/usr/bin:/bin")  # working directory of the Ray job
    monkeypatch.setenv("DRIVETRAIN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAY_worker_niceness", "0")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    head = {"num_cpus": 2, "include_dashboard": True, "dashboard_port": port}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        cluster.shutdown()


def ray_job(verb: str, jobs: str, *words: str) -> str:
    command = [str(RAY), "job", verb, "--address", jobs, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow  # an alternative to the server
def test_submitted_and_stopped(jobs: str, toy_job: Path, undisturbed: Result, tmp_path: Path) -> None:
    """As in the documentation. The result equals that of a direct run; stopping the job saves and ends the run."""
    command = ["--working-dir", str(toy_job), "--", "drivetrain", "run", "job.yaml"]
    first = ray_job("submit", jobs, *command)
    assert "all steps are done" in first
    store = RunStore(f"sqlite:///{tmp_path / 'home' / 'drivetrain.db'}")
    (record,) = store.page()
    assert_same(Result(0, record.id, record.facts, {}, tmp_path / "home", ""), undisturbed)

    ray_job("submit", jobs, "--no-wait", "--submission-id", "second", *command, "--set", "training.steps=400")
    while (second := store.page()[0]).id == record.id or second.state.phase != "training":
        time.sleep(0.2)
    ray_job("stop", jobs, "second")
    deadline = time.monotonic() + 60
    while not second.ended and time.monotonic() < deadline:
        time.sleep(0.2)
        second = store.get(second.id)
    assert second.facts["reason"] == "cancelled"
    assert second.state.progress.committed_step == second.state.progress.step > 0
