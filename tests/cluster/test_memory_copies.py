"""Gangs that go on from copies in memory: none of these runs has a checkpoint before its last step."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from drivetrain_workers.checkpoints.memory_copies import memory_folder
from ray.cluster_utils import Cluster

from tests.cluster.harness import Result, RunningJob, View, command_line, run_job

SETTINGS = ("checkpoint.every=40", "checkpoint.memory_every=2")


def resumed_at(job: RunningJob, generation: int) -> int:
    """Return the step that a generation has loaded; a minimum, since a rank may be lost before its node."""
    view = job.wait_for(lambda view: view["generation"] >= generation and "loaded" in view["timeline"])
    return int(view["step"])


def assert_same(result: Result, undisturbed: Result) -> None:
    assert result.code == 0, result.errors
    assert result.series("loss") == undisturbed.series("loss")
    assert result.series("eval_loss") == undisturbed.series("eval_loss")
    assert result.weights_digest() == undisturbed.weights_digest()
    audit = command_line(result.home, "audit", result.run_id)
    assert "40 steps, 320 samples" in audit.stdout, audit.stderr
    assert "exactly once per epoch" in audit.stdout


def test_ranks_and_agents_die(toy_job: Path, shared_home: Path, undisturbed: Result) -> None:
    job = run_job(toy_job, shared_home, *SETTINGS)
    killed = job.kill_part("rank-1", 9)
    assert resumed_at(job, 2) >= killed["step"] - 3
    job.kill_part("rank-0", 18)
    assert resumed_at(job, 3) >= 14
    job.kill_part("agent-0", 27)  # its memory outlives it
    assert resumed_at(job, 4) >= 22
    result = job.finish()
    assert_same(result, undisturbed)
    assert not memory_folder(result.run_id, 0).exists()


@pytest.mark.slow
def test_a_node_dies(toy_job: Path, shared_home: Path, undisturbed: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory is lost: the copies of its ranks come from the other node."""
    monkeypatch.setenv("RAY_worker_niceness", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        arguments = ["run", str(toy_job), f"--address={cluster.address}", *(f"--set={s}" for s in SETTINGS)]
        job = RunningJob(arguments, shared_home, own_ray=True)
        view = job.wait_for_step(15)
        own, peer = (memory_folder(view["run_id"], first) for first in (1, 0))
        assert list(own.glob("*/rank-00000.json")), "the second node keeps copies of the first node's rank"
        assert list(peer.glob("*/rank-00001.json")), "and the other way round"
        _kill_with_its_memory(view, own)
        assert resumed_at(job, 2) >= view["step"] - 5
        result = job.finish()
    finally:
        cluster.shutdown()
    assert_same(result, undisturbed)
    assert not own.exists()
    assert not peer.exists()


def _kill_with_its_memory(view: View, folder: Path) -> None:
    os.kill(view["pids"]["agent-1"], signal.SIGKILL)
    gone = folder.rename(folder.with_name(f"{folder.name}-gone"))  # at one instant: its successor sees none of it
    shutil.rmtree(gone)


def test_memory_that_is_short_is_not_fatal(toy_job: Path, shared_home: Path, undisturbed: Result) -> None:
    """If copies cannot be written, checkpoints are used."""
    job = run_job(toy_job, shared_home, "checkpoint.memory_every=3")
    view = job.wait_for(lambda view: bool(view["run_id"]) and "requested" in view["timeline"])
    folder = memory_folder(view["run_id"], 0)
    job.wait_for(lambda _: folder.is_dir())
    for step in range(3, 40, 3):  # a file where each copy's folder would be
        (folder / f"step-{step:08d}.g0001").write_text("in the way")
    warned = job.wait_for(lambda view: "copies in the node's memory are disabled" in view["problem"])
    assert warned["phase"] in ("training", "starting")
    assert_same(job.finish(), undisturbed)
