"""What a user does with checkpoints: choose which stay, list, check, export."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from drivetrain_workers.checkpoints.store import committed
from safetensors import safe_open

from tests.cluster.harness import Result, command_line, run_job


def test_listing_checking_exporting(undisturbed: Result, tmp_path: Path) -> None:
    home, run_id = undisturbed.home, undisturbed.run_id
    listed = [json.loads(line) for line in command_line(home, "checkpoints", run_id, "--json").stdout.splitlines()]
    assert [line["step"] for line in listed] == [40, 32, 24]
    assert listed[0]["eval_loss"] == undisturbed.facts["eval_loss"]
    assert listed[1]["eval_loss"] is None
    assert command_line(home, "checkpoints", run_id, "--verify").stdout.count("every byte is what was written") == 3
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
    assert missing.returncode == 1
    assert "no checkpoint of step 23" in missing.stderr


def test_the_best_stays_and_the_interval_is_found(toy_job: Path, shared_home: Path, undisturbed: Result) -> None:
    """`auto` saves at steps that depend on the clock; the result does not, killed or not."""
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
