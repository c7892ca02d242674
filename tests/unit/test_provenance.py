"""Package versions and git state at the start of a run."""

from __future__ import annotations

from pathlib import Path

import git
import torch
from drivetrain.job.provenance import GitState, load_environment, load_git_state, save_environment
from drivetrain_workers.records.run_folder import RunFolder

from tests.repository import make_repository


def test_a_folder_without_a_commit_has_no_state(tmp_path: Path) -> None:
    assert GitState.of(tmp_path) == GitState()
    git.Repo.init(tmp_path)
    assert GitState.of(tmp_path) == GitState()


def test_uncommitted_changes_are_stored_without_secrets(tmp_path: Path) -> None:
    job = tmp_path / "jobs" / "one"
    job.mkdir(parents=True)
    for path in (tmp_path / "other.py", job / "model.py", job / ".env"):
        path.write_text("before\n")
    commit = make_repository(tmp_path)
    assert GitState.of(job) == GitState(commit, "")
    for path in (tmp_path / "other.py", job / "model.py", job / ".env"):
        path.write_text("after\n")
    found = GitState.of(job)
    assert found.commit == commit
    assert "jobs/one/model.py" in found.uncommitted
    assert "-before\n+after" in found.uncommitted
    assert ".env" not in found.uncommitted
    assert "other.py" not in found.uncommitted  # code outside the job's folder does not run


def test_a_runs_folder_keeps_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    state = GitState("0" * 40, "-before\n+after")
    save_environment(folder, state)
    assert load_git_state(folder) == state
    assert load_environment(folder)["torch"] == torch.__version__
    assert load_environment(folder)["git commit"] == state.commit
