"""Bad steps in real runs: rewound and skipped reproducibly; out of memory."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.cluster.harness import Result, command_line, resume_run, run_job

# A loss that is NaN on about every thirtieth batch, by its content alone.
POISON = """

def poisoned(model, batch):
    loss = slow_loss(model, batch)
    bad = model.training and int(batch["tokens"].sum()) % 24 == 5
    return loss * float("nan") if bad else loss


def hungry(model, batch):
    if model.training and len(batch["tokens"]) > 1:
        import torch
        torch.empty(1 << 60, dtype=torch.uint8)
    return slow_loss(model, batch)
"""


@pytest.fixture(scope="module")
def poisoned_job(toy_job: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guards") / "job"
    shutil.copytree(toy_job, folder)
    (folder / "toy_loss.py").write_text((folder / "toy_loss.py").read_text() + POISON)
    return folder


def test_bad_batches_are_skipped(poisoned_job: Path, shared_home: Path) -> None:
    """A run with an additional kill has the same result."""
    settings = ("model.loss=toy_loss:poisoned", "training.guard={non_finite: rewind, max_rewinds: 20}")
    calm = run_job(poisoned_job, shared_home, *settings).finish()
    assert calm.code == 0, calm.errors
    assert calm.last_view["restarts"] >= 1
    assert "rewinding, its batch is skipped" in calm.last_view["problem"]
    output = command_line(shared_home, "audit", calm.run_id).stdout
    assert output.count("skipped: positions") == calm.last_view["restarts"]
    assert "every sample was used exactly once per epoch" in output
    job = run_job(poisoned_job, shared_home, *settings, "checkpoint.keep=4")
    view = job.wait_for_step(14)
    os.kill(view["pids"]["rank-1"], signal.SIGKILL)
    killed = job.finish()
    assert killed.series("loss") == calm.series("loss")
    assert killed.weights_digest() == calm.weights_digest()


@pytest.mark.slow
def test_skipped_batches_are_stored(poisoned_job: Path, shared_home: Path, tmp_path: Path) -> None:
    """A run that has skipped a batch, is stopped and loses its folder resumes with the same result."""
    settings = ("model.loss=toy_loss:poisoned", "training.guard={non_finite: rewind, max_rewinds: 20}")
    calm = run_job(poisoned_job, shared_home, *settings).finish()
    job = run_job(poisoned_job, shared_home, *settings, f"checkpoint.location={tmp_path}")
    job.wait_for(lambda view: view["restarts"] > 0 and "stored" in view["facts"])
    job.process.send_signal(signal.SIGINT)
    stopped = job.finish()
    folder = shared_home / "runs" / stopped.run_id
    assert stopped.facts["reason"] == "cancelled"
    for path in (folder / "checkpoints", folder / "ledger"):
        shutil.rmtree(path)
    (folder / "adjustments.json").unlink()
    resumed = resume_run(stopped.run_id, shared_home).finish()
    assert resumed.code == 0, resumed.errors
    assert resumed.series("loss") == calm.series("loss")
    assert resumed.weights_digest() == calm.weights_digest()
    output = command_line(shared_home, "audit", resumed.run_id).stdout
    assert "every sample was used exactly once per epoch" in output


def test_too_many_rewinds_end_the_run(poisoned_job: Path, shared_home: Path) -> None:
    settings = ("model.loss=toy_loss:poisoned", "training.guard={non_finite: rewind, max_rewinds: 0}")
    result = run_job(poisoned_job, shared_home, *settings).finish()
    assert result.code == 1
    assert result.facts["reason"] == "bad_step"
    assert "loss nan" in result.facts["detail"]


def test_out_of_memory_names_what_would_fit(poisoned_job: Path, shared_home: Path) -> None:
    result = run_job(poisoned_job, shared_home, "model.loss=toy_loss:hungry").finish()
    assert result.code == 1
    assert result.facts["reason"] == "out_of_memory"
    assert "--set training.micro_batch_size=2 (it was 4" in result.facts["detail"]


def test_out_of_memory_is_answered_by_smaller_batches(
    poisoned_job: Path, shared_home: Path, undisturbed: Result
) -> None:
    result = run_job(poisoned_job, shared_home, "model.loss=toy_loss:hungry", "training.on_oom=retry-smaller").finish()
    assert result.code == 0, result.errors
    assert result.last_view["restarts"] == 2  # 4, 2, 1
    # The same mathematics; its dropout falls otherwise.
    assert result.facts["train_loss"] == pytest.approx(undisturbed.facts["train_loss"], abs=0.1)
