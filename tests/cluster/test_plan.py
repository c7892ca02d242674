"""`drivetrain plan`, and a run that leaves its settings to the plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cluster.harness import Result, command_line, run_job


def test_a_plan_knows_what_came_of_past_runs(toy_job: Path, undisturbed: Result) -> None:
    done = command_line(undisturbed.home, "plan", str(toy_job), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["profile"]["parameters"] == undisturbed.facts["parameters"]
    assert "past run" in found["site"]["speed"]["known_from"]
    written = found["as_written"]
    assert (written["setting"]["zero_stage"], written["setting"]["workers"]) == (2, 2)
    assert sum(written["memory"].values()) == pytest.approx(undisturbed.facts["peak_bytes"], rel=0.3)
    assert found["steps"] == 40
    gpus = command_line(undisturbed.home, "plan", str(toy_job), "--gpu", "h100", "--gpus", "4", "--nodes", "2")
    assert "8 workers on 2 nodes, each with h100" in gpus.stdout
    for arguments, problem in (
        (["--gpu", "h1000"], "--gpu: got 'h1000'"),
        (["--gpus", "8"], "Add --gpu h100"),
        (["--nodes", "3"], "--nodes: got 3;"),
    ):
        refused = command_line(undisturbed.home, "plan", str(toy_job), *arguments)
        assert refused.returncode == 2
        assert problem in refused.stderr


def test_settings_of_the_plan_are_chosen_and_stored(toy_job: Path, undisturbed: Result) -> None:
    home = undisturbed.home
    result = run_job(toy_job, home, "training.zero_stage=auto", "training.micro_batch_size=auto").finish()
    assert result.code == 0, result.errors
    chosen = result.facts["plan"]
    resolved = json.loads((home / "runs" / result.run_id / "resolved.json").read_text())["training"]
    assert (
        (resolved["zero_stage"], resolved["micro_batch_size"])
        == (chosen["zero_stage"], chosen["micro_batch_size"])
        == (0, 4)
    )
    again = command_line(home, "diff", result.run_id, undisturbed.run_id, "--json")
    assert json.loads(again.stdout)["settings"]["training.zero_stage"] == [0, 2]
