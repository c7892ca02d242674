"""Whole ranks with real data, DeepSpeed and checkpoints: modes of the model, and bad steps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from drivetrain_workers.checkpoints.load import Checkpoint
from drivetrain_workers.checkpoints.store import committed
from drivetrain_workers.records.adjustments import Adjustments
from drivetrain_workers.records.run_folder import RunFolder

from tests.unit.gang import Gang, run_gangs
from tests.unit.rank_cases import make_run, train_rank

_NO_EVALUATIONS, _EVERY_STEP = {"eval_every": 100}, {"eval_every": 1}


def gang(folders: dict[str, str], generation: int = 1, world_size: int = 2, **case: Any) -> Gang:
    return Gang(world_size, [{"folders": folders, "generation": generation, **case}])


def saved_steps(folders: dict[str, str]) -> list[int]:
    return sorted(one.step for one in committed(RunFolder(Path(folders["run_folder"])).checkpoints))


def final_weights(folders: dict[str, str]) -> dict[str, torch.Tensor]:
    root = RunFolder(Path(folders["run_folder"])).checkpoints
    return Checkpoint(committed(root)[0].folder(root)).weights()


def test_evaluations_and_resumes_change_nothing(tmp_path: Path) -> None:
    """For a part in eval mode, for dropout, and for a model that comes in eval mode."""
    gangs, names = [], []
    for factory in ("frozen", "dropout", "pretrained"):
        model = {"factory": f"ranked_code:{factory}", "metrics": "ranked_code:metrics"}
        calm = make_run(tmp_path / factory / "calm", model, training=_NO_EVALUATIONS)
        busy = make_run(tmp_path / factory / "busy", model, training=_EVERY_STEP)
        proven = {"every": 2, "keep": 9, "verify": "step"}
        resumed = make_run(tmp_path / factory / "resumed", model, training=_EVERY_STEP, checkpoint=proven)
        gangs += [gang(calm), gang(busy), gang(resumed, stop_after=3), gang(resumed, 2)]
        names.append(factory)
    results = [ranks[0] for (ranks,) in run_gangs(train_rank, gangs, tmp_path / "gangs")]
    losses = {}
    for number, factory in enumerate(names):
        calm, busy, first, rest = results[4 * number : 4 * number + 4]
        assert [one["failure"] for one in (calm, busy, first, rest)] == [None] * 4
        assert len(calm["losses"]) == 6
        assert busy["losses"] == calm["losses"]
        assert {**first["losses"], **rest["losses"]} == calm["losses"]
        assert list(rest["losses"]) == ["4", "5", "6"]
        losses[factory] = calm["losses"]
        weights = [
            final_weights({"run_folder": str(tmp_path / factory / one / "toy-run")}) for one in ("calm", "resumed")
        ]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert losses["pretrained"] == losses["dropout"]  # both train with dropout


@pytest.mark.parametrize("stage", [0, 2])
def test_a_bad_gradient_is_rewound_to_the_checkpoint_before_it(tmp_path: Path, stage: int) -> None:
    """A checkpoint is due after every step; the step with the bad gradient, on one rank only, is not saved."""
    model = {"factory": "ranked_code:dropout", "loss": "ranked_code:bad_gradient"}
    settings = {"zero_stage": stage, "gradient_clipping": 0.0, "eval_every": 100}
    every = {"every": 1, "keep": 9}
    runs = {
        policy: make_run(
            tmp_path / policy, model, training={**settings, "guard": {"non_finite": policy}}, checkpoint=every
        )
        for policy in ("rewind", "stop", "warn")
    }
    gangs = [gang(runs["rewind"]), gang(runs["stop"]), gang(runs["warn"])]
    rewound, stopped, warned = [ranks for (ranks,) in run_gangs(train_rank, gangs, tmp_path / "gangs")]
    for ranks, reason in ((rewound, "rewound"), (stopped, "bad_step")):
        assert [one["failure"][0] for one in ranks] == [reason] * 2
        assert all("step 4: loss" in one["failure"][1] for one in ranks)
        assert list(ranks[0]["losses"]) == ["1", "2", "3"]
    assert saved_steps(runs["stop"]) == [1, 2, 3]
    assert all(norm > 0 for norm in rewound[0]["norms"])
    ((again, _),) = run_gangs(train_rank, [gang(runs["rewind"], 2)], tmp_path / "again")[0]
    assert again["failure"] is None
    assert list(again["losses"]) == ["4", "5", "6"]
    skips = Adjustments.read(RunFolder(Path(runs["rewind"]["run_folder"])).adjustments).skips
    assert [(skip.start, skip.stop) for skip in skips] == [(24, 32)]
    (problem,) = warned[0]["problems"]
    assert problem.startswith("step 4: loss")
    assert list(warned[0]["losses"]) == ["1", "2", "3", "4", "5", "6"]
    for policy in ("rewind", "warn"):
        assert saved_steps(runs[policy]) == [1, 2, 3, 4, 5, 6]
        root = RunFolder(Path(runs[policy]["run_folder"])).checkpoints
        for checkpoint in committed(root):
            weights = Checkpoint(checkpoint.folder(root)).weights()
            assert all(math.isfinite(float(tensor.sum())) for tensor in weights.values())
