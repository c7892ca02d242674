"""Checkpoints across ZeRO stages and world sizes, with real DeepSpeed engines and nothing else around them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from drivetrain_workers.checkpoints.load import Checkpoint
from drivetrain_workers.checkpoints.store import committed

_STEPS, _SAVED_AT = 6, 3


def train(folder: Path, stage: int, world_size: int, precision: str = "fp32") -> list[float]:
    """Train the small model of `tests.cluster.checkpoint_ranks` on ``world_size`` processes; losses by step.

    Saves after step 3 where ``folder`` has no checkpoint yet, else goes on from there.
    """
    arguments = {"folder": str(folder), "stage": stage, "world_size": world_size, "precision": precision}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", "tests.cluster.checkpoint_ranks", json.dumps({**arguments, "steps": _STEPS})]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "losses.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """A checkpoint of stage 2 on two ranks, and the losses of the uninterrupted run."""
    folder = tmp_path_factory.mktemp("saved")
    return folder, train(folder, stage=2, world_size=2)


@pytest.mark.parametrize(("stage", "world_size"), [(2, 2), (0, 1), (1, 3), (3, 2), (3, 1)])
def test_any_stage_and_world_size_goes_on(saved: tuple[Path, list[float]], stage: int, world_size: int) -> None:
    folder, expected = saved
    losses = train(folder, stage, world_size)
    same = (stage, world_size) == (2, 2)
    assert losses == (expected[_SAVED_AT:] if same else pytest.approx(expected[_SAVED_AT:], abs=2e-5))


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_every_stage_saves_what_the_same_stage_resumes_to_the_bit(tmp_path: Path, stage: int) -> None:
    expected = train(tmp_path, stage, 2)
    assert train(tmp_path, stage, 2) == expected[_SAVED_AT:]


def test_bf16_resumes_to_the_bit(tmp_path: Path) -> None:
    expected = train(tmp_path, 2, 2, "bf16")
    assert train(tmp_path, 2, 2, "bf16") == expected[_SAVED_AT:]


def test_nothing_in_a_checkpoint_is_a_pickle(saved: tuple[Path, list[float]]) -> None:
    folder, _ = saved
    root = folder / "checkpoints"
    checkpoint = committed(root)[0].folder(root)
    assert {path.suffix for path in checkpoint.iterdir()} == {".bin", ".json"}
    opened: list[str] = []
    sys.addaudithook(lambda event, _: opened.append(event) if event == "pickle.find_class" else None)
    weights = Checkpoint(checkpoint).weights()
    assert opened == []
    assert weights["0.weight"].shape == (7, 5)
    assert weights["counter"].tolist() == [2 * _SAVED_AT]  # two micro-batches a step
