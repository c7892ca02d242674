"""Verbs on a local run while another process runs it, with its own Ray."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cluster.harness import LEISURE, command_line, run_job


def test_a_running_run_is_read_and_cancelled_from_another_terminal(toy_job: Path, tmp_path: Path) -> None:
    """No server runs, and `ray start` was not called: the run's folder names the Ray that runs it."""
    job = run_job(toy_job, tmp_path, LEISURE, own_ray=True)
    run = job.wait_for_step(5)["run_id"]
    shown = json.loads(command_line(tmp_path, "status", run, "--json", own_ray=True).stdout)
    assert shown["phase"] == "training"
    assert shown["step"] >= 4  # of the newest step the metrics may not be logged yet
    assert shown["steps"] == 40
    (listed,) = command_line(tmp_path, "list", own_ray=True).stdout.splitlines()[1:]
    assert listed.split()[0] == run
    assert command_line(tmp_path, "logs", run, own_ray=True).returncode == 0
    cancelled = command_line(tmp_path, "cancel", run, "--json", own_ray=True)
    assert cancelled.returncode == 0, cancelled.stderr
    assert json.loads(cancelled.stdout)["run_id"] == run
    assert command_line(tmp_path, "wait", run, "--timeout", "60", own_ray=True).returncode == 130
    assert job.finish().code == 130
    again = command_line(tmp_path, "cancel", run, own_ray=True)
    assert again.returncode == 0, "it has ended"
    assert "cancelled" in again.stdout
