"""Runs whose code ends its own process, or never returns: each has an end, and a reason that names the code."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.harness import run_job

_CODE = """
import os, sys, time
import torch
from drivetrain_workers.modeling.objective import next_token_loss
from drivetrain_workers.recipes.language_model.model import gpt

CALLS = []


def one_of_two(model, batch):
    CALLS.append(1)
    if len(CALLS) == 3 and torch.distributed.get_rank() == 1:
        os._exit(0)
    return next_token_loss(model, batch)


def leaves(**named):
    sys.exit(0)


def ends(text):
    os._exit(0)


def never(*arguments, **named):
    time.sleep(10**9)


def stuck(model, batch):
    CALLS.append(1)
    return next_token_loss(model, batch) if len(CALLS) < 3 else never()
"""


@pytest.fixture
def job(toy_job: Path, tmp_path: Path) -> Any:
    """Write a job with this code; the argument has changed keys."""

    def write(**changes: str) -> Path:
        found = yaml.safe_load((toy_job / "job.yaml").read_text())
        found["data"]["source"] = str(toy_job / "text.txt")
        found["sample"] = None
        for key, function in changes.items():
            section, _, name = key.partition("_")
            found[section][name] = f"ends:{function}"
            if section == "data":
                found["data"]["name"] = function
        if changes.get("model_loss") is None:
            del found["model"]["loss"]
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(found))
        (tmp_path / "ends.py").write_text(_CODE)
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("changes", "reason", "detail"),
    [
        (
            {"model_loss": "one_of_two"},
            "user_code",
            "rank 1 exited with code 0: its end was not reported: the job's code",
        ),
        ({"model_factory": "leaves"}, "user_code", "model.factory raised SystemExit: 0 (ends.py:18, in leaves)"),
        (
            {"data_transform": "ends"},
            "prepare_failed",
            "a preprocessing actor could not be kept alive: its process died",
        ),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else None,
)
def test_code_that_ends_its_process(
    job: Any, shared_home: Path, changes: dict[str, str], reason: str, detail: str
) -> None:
    result = run_job(job(**changes), shared_home).finish()
    assert result.code == 1
    assert result.facts["reason"] == reason, result.facts
    assert detail in result.facts["detail"]
    assert "Ray" not in result.facts["detail"]


@pytest.mark.parametrize(
    ("changes", "phase", "code", "reason"),
    [
        ({"data_transform": "never"}, "preparing", 130, "cancelled"),
        ({"model_factory": "never"}, "starting", 130, "cancelled"),
        ({"model_loss": "stuck"}, "training", 130, "cancelled"),
        ({"model_assess": "never"}, "finishing", 0, "completed"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.islower() else "",
)
def test_code_that_never_returns_can_be_cancelled(
    job: Any, shared_home: Path, changes: dict[str, str], phase: str, code: int, reason: str
) -> None:
    running = run_job(job(**changes), shared_home, "training.steps=4")
    running.wait_for(lambda view: view["phase"] == phase and (phase != "preparing" or view["preparing"][1] > 0))
    running.process.send_signal(signal.SIGINT)
    result = running.finish()
    assert (result.code, result.facts["reason"]) == (code, reason), result.facts
    if phase == "preparing":  # its actors hold no CPU that another run needs
        assert run_job(job(), shared_home, "training.steps=2").finish().code == 0
