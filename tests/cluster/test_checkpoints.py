"""Checkpoints across ZeRO stages and world sizes, with real DeepSpeed engines only."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from drivetrain_workers.checkpoints.load import Checkpoint
from drivetrain_workers.checkpoints.store import committed, newest_valid

from tests.cluster.checkpoint_ranks import Case

_SAVED_AT, _STEPS = 3, 6
_EVERYWHERE = [(0, 1), (0, 2), *((stage, world) for stage in (1, 2, 3) for world in (1, 2, 3, 4))]


def run(*cases: Case) -> list[dict[str, Any]]:
    """Return the results of cases that run one after another in ranks forked from one process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", "tests.cluster.checkpoint_ranks", json.dumps([asdict(case) for case in cases])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads((Path(case.folder) / "result.json").read_text()) for case in cases]


def losses(result: dict[str, Any], after: int = 0) -> list[float]:
    return [loss for step, loss in result["losses"].items() if int(step) > after]


def state(root: Path, step: int) -> dict[tuple[str, str], torch.Tensor]:
    """Return all weights and moments of a checkpoint."""
    (folder,) = root.glob(f"checkpoints/step-{step:08d}.*")
    checkpoint = Checkpoint(folder)
    whole = {}
    for name, shape in checkpoint.manifest.shapes.items():
        for kind in checkpoint.kinds:
            whole[name, kind] = torch.empty(torch.Size(shape).numel())
            checkpoint.read(name, kind, 0, whole[name, kind])
    return whole


def check_matrix(folder: Path, origins: list[tuple[int, int]], targets: list[tuple[int, int]]) -> None:
    """Save at each of ``origins`` (stage, world size), and load at each of ``targets``."""
    saved = [Case(str(folder / f"{origin}"), *origin, keep=2) for origin in origins]
    loaded = [
        Case(str(folder / f"{origin}{target}"), *target, source=f"{folder}/at{origin}", save_loaded=True, keep=3)
        for origin in origins
        for target in targets
    ]
    whole = run(*saved)
    for case in saved:  # the state after a crash right after step 3
        (at,) = Path(case.folder).glob(f"checkpoints/step-{_SAVED_AT:08d}.*")
        source = folder / f"at{(case.stage, case.world_size)}" / "checkpoints"
        shutil.copytree(at, source / at.name)
    results = iter(run(*loaded))
    for origin, expected in zip(origins, whole, strict=True):
        before = state(folder / f"at{origin}", _SAVED_AT)
        for target in targets:
            found = losses(next(results))
            uninterrupted = losses(expected, after=_SAVED_AT)
            again = folder / f"{origin}{target}"
            assert found == (uninterrupted if origin == target else pytest.approx(uninterrupted, abs=2e-5))
            assert _equal(state(again, _SAVED_AT), before)
            if origin == target:
                assert _equal(state(again, _STEPS), state(folder / f"{origin}", _STEPS))


def _equal(a: dict[Any, torch.Tensor], b: dict[Any, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_any_stage_and_world_size_resumes(tmp_path: Path) -> None:
    check_matrix(tmp_path, [(2, 2), (3, 3)], [(2, 2), (0, 1), (1, 3), (3, 2), (3, 1)])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_stage_and_world_size_loads_every_other(tmp_path: Path, stage: int) -> None:
    check_matrix(tmp_path, [(stage, world) for world in (1, 2, 3, 4)], _EVERYWHERE)


@pytest.mark.slow  # stages 1 to 3 do so above and below, with other optimizers
def test_every_stage_resumes_its_own_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    for stage in (0, 1, 3):
        check_matrix(tmp_path / str(stage), [(stage, 2)], [(stage, 2)])


def test_bf16_resumes_to_the_bit(tmp_path: Path) -> None:
    whole = Case(str(tmp_path / "whole"), 2, 2, precision="bf16")
    half = Case(str(tmp_path / "half"), 2, 2, precision="bf16", steps=_SAVED_AT)
    rest = Case(str(tmp_path / "half"), 2, 2, precision="bf16", generation=2)
    expected, _, resumed = run(whole, half, rest)
    assert losses(resumed) == losses(expected, after=_SAVED_AT)


@pytest.mark.parametrize(
    ("stage", "optimizer", "offload"),
    [(1, "SGD", "none"), pytest.param(2, "AdamW", "cpu", marks=pytest.mark.slow), (3, "AdamW", "cpu")],
)
def test_other_optimizers_and_offloading_resume_bit_for_bit(
    tmp_path: Path, stage: int, optimizer: str, offload: str
) -> None:
    settings: dict[str, Any] = {"stage": stage, "world_size": 2, "optimizer": optimizer, "offload": offload}
    whole = Case(str(tmp_path / "whole"), **settings)
    half = Case(str(tmp_path / "half"), **settings, steps=_SAVED_AT)
    rest = Case(str(tmp_path / "half"), **settings, generation=2)
    expected, _, resumed = run(whole, half, rest)
    assert losses(resumed) == losses(expected, after=_SAVED_AT)
    assert _equal(state(tmp_path / "half", _STEPS), state(tmp_path / "whole", _STEPS))


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with checkpoints of steps 3 and 6."""
    folder = tmp_path_factory.mktemp("two")
    run(Case(str(folder), 2, 2, keep=2))
    return folder


@pytest.mark.parametrize("times", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_no_damage_is_loaded(two_checkpoints: Path, times: int) -> None:
    """Flipped bits and truncation, one at a time: each is rejected with the file name, and step 3 loads."""
    draw = random.Random(0)
    root = two_checkpoints / "checkpoints"
    newest, before = (checkpoint.folder(root) for checkpoint in committed(root))
    whole = {path: path.read_bytes() for path in sorted(newest.iterdir())}
    assert len(whole) == 5
    for number in range(times):
        path = list(whole)[number % len(whole)]
        damaged = bytearray(whole[path])
        at = draw.randrange(len(damaged))
        if draw.random() < 0.9:
            damaged[at] ^= 1 << draw.randrange(8)
        else:
            del damaged[at:]
        path.write_bytes(damaged)
        found, problems = newest_valid(root)
        assert found == before
        assert len(problems) == 1
        assert str(path) in problems[0]
        path.write_bytes(whole[path])
    assert newest_valid(root) == (newest, [])


class _Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo this ran code; exit 1",)


def test_a_pickle_in_a_checkpoint_is_never_opened(two_checkpoints: Path, tmp_path: Path) -> None:
    """For every file of a checkpoint; the files opened while loading a valid one are recorded as well."""
    names = sorted(
        path.name
        for path in committed(two_checkpoints / "checkpoints")[0].folder(two_checkpoints / "checkpoints").iterdir()
    )
    assert {Path(name).suffix for name in names} == {".bin", ".json"}
    cases = [Case(str(tmp_path / "sound"), 2, 2, source=str(two_checkpoints))]
    for name in names:
        root = tmp_path / "source" / name
        shutil.copytree(two_checkpoints / "checkpoints", root / "checkpoints")
        (committed(root / "checkpoints")[0].folder(root / "checkpoints") / name).write_bytes(pickle.dumps(_Malicious()))
        cases.append(Case(str(tmp_path / name), 2, 2, source=str(root)))
    sound, *others = run(*cases)
    assert sound["first"] == _STEPS
    assert sound["unpickled"] == []
    for name, result in zip(names, others, strict=True):
        assert result["first"] == _SAVED_AT
        assert name in result["problems"][0]
        assert result["unpickled"] == []


@pytest.mark.parametrize("kills", [12, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_killed_at_any_instant(tmp_path: Path, kills: int) -> None:
    """Ranks are killed at random times and at random file system calls, between and during saves."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", "tests.cluster.kill_gangs", str(tmp_path), str(kills)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    result = json.loads(done.stdout.splitlines()[-1])
    print(result)
    assert result["kills"] == kills
    assert result["in_saves"] >= kills // 4
    root = tmp_path / "disturbed" / "checkpoints"
    assert [path.name for path in sorted(tmp_path.rglob("*.tmp"))] == []
    assert sorted(path.name for path in root.iterdir()) == sorted(path.folder(root).name for path in committed(root))
    final = committed(root)[0]
    assert _equal(state(tmp_path / "disturbed", final.step), state(tmp_path / "calm", final.step))


def test_the_loaded_state_is_verified(two_checkpoints: Path, tmp_path: Path) -> None:
    """A weight in memory that differs by a millionth is detected although all files are valid."""
    (result,) = run(Case(str(tmp_path), 2, 2, source=str(two_checkpoints), tamper=True))
    assert "blocks [0] of rank 0 differ in memory, which hold parts of 0." in result["refused"]


def test_weights_are_read_without_an_engine(two_checkpoints: Path) -> None:
    root = two_checkpoints / "checkpoints"
    weights = Checkpoint(committed(root)[0].folder(root)).weights()
    assert weights["0.weight"].shape == (7, 5)
    assert weights["counter"].tolist() == [2 * _STEPS]  # two micro-batches a step
