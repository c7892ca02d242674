"""Checkpoint commands: retention, list, verify, export."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest
from drivetrain_workers.checkpoints.store import committed
from safetensors import safe_open

from tests.cluster.harness import Result, command_line, run_job


def test_listing_checking_exporting(undisturbed: Result, tmp_path: Path) -> None:
    home, run_id = undisturbed.home, undisturbed.run_id
    listed = [json.loads(line) for line in command_line(home, "checkpoints", run_id, "--json").stdout.splitlines()]
    assert [line["step"] for line in listed] == [40, 32, 24]
    assert listed[0]["eval_loss"] == undisturbed.facts["eval_loss"]
    assert listed[1]["eval_loss"] is None
    assert command_line(home, "checkpoints", run_id, "--verify").stdout.count("verified") == 3
    done = command_line(home, "export", run_id, "--to", str(tmp_path / "out"))
    assert done.stdout.strip() == str(tmp_path / "out"), done.stderr
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata()["run"] == run_id
        assert file.metadata()["step"] == "40"
        assert "tokens.weight" in file.keys()  # noqa: SIM118  # not a dict
        newest = file.get_tensor("tokens.weight")
    assert command_line(home, "export", run_id, "--to", str(tmp_path / "older"), "--step=24").returncode == 0
    with safe_open(tmp_path / "older" / "model.safetensors", "pt") as file:
        assert not file.get_tensor("tokens.weight").equal(newest)
    missing = command_line(home, "export", run_id, "--to", str(tmp_path / "none"), "--step=23")
    assert missing.returncode == 2
    assert f"there is no checkpoint '23' in {run_id}" in missing.stderr


@pytest.mark.slow
def test_the_best_stays_and_the_interval_is_found(toy_job: Path, shared_home: Path, undisturbed: Result) -> None:
    """`auto` saves at steps that depend on the clock; the result does not, with or without a kill."""
    keep = "checkpoint.keep={last: 1, every: 20, best: 1}"
    job = run_job(toy_job, shared_home, keep, "checkpoint.every=5")
    result = job.finish()
    root = shared_home / "runs" / result.run_id / "checkpoints"
    assert {checkpoint.step for checkpoint in committed(root)} == {20, 40}
    automatic = run_job(toy_job, shared_home, "checkpoint.every=auto")
    view = automatic.wait_for_step(20)
    os.kill(view["pids"]["rank-0"], signal.SIGKILL)
    result = automatic.finish()
    assert result.code == 0, result.errors
    assert result.series("loss") == undisturbed.series("loss")
    assert result.weights_digest() == undisturbed.weights_digest()


def test_a_resume_is_proven_by_a_step(toy_job: Path, shared_home: Path, undisturbed: Result) -> None:
    """The recomputed step must be identical; then the code of the job is changed in the run's folder."""
    job = run_job(toy_job, shared_home, "checkpoint.verify=step")
    job.kill_part("rank-1", 9)
    view = job.wait_for(lambda view: view["generation"] == 2 and view["phase"] == "training" and view["step"] >= 17)
    code = shared_home / "runs" / view["run_id"] / "code" / "toy_loss.py"
    code.write_text(code.read_text().replace("next_token_loss(model, batch)", "next_token_loss(model, batch) * 1.0001"))
    os.kill(view["pids"]["rank-1"], signal.SIGKILL)
    refused = job.finish()
    assert refused.code == 1
    computed = refused.series("loss")
    assert len(computed) >= 17
    assert computed.items() <= undisturbed.series("loss").items()
    assert refused.facts["reason"] == "resume_mismatch"
    problem = r"step-\d{8}\.g0002 was loaded, but the loss of the batch before it is"
    assert re.search(problem, refused.facts["detail"])


def test_a_run_ends_when_it_gets_no_better(toy_job: Path, shared_home: Path) -> None:
    """The patience survives a kill, and the last step is saved and concluded as in any run."""
    stop = "training.early_stop={patience: 2, min_delta: 1.0}"
    job = run_job(toy_job, shared_home, stop, "training.eval_every=5")
    job.kill_part("rank-0", 13)
    result = job.finish()
    assert result.code == 0, result.errors
    losses = result.series("eval_loss")
    assert max(losses) < 40
    assert list(result.series("loss"))[-1] == max(losses)
    assert f"step-{max(losses):08d}" in result.facts["checkpoint"]
    best = [min(loss for at, loss in losses.items() if at <= step) for step in losses]
    assert best[-3] - best[-1] < 1.0
