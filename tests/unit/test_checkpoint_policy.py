from __future__ import annotations

import pytest
from drivetrain_workers.checkpoints.policy import save_interval_s, to_keep
from drivetrain_workers.records.run_folder import CheckpointId
from drivetrain_workers.spec import CheckpointSpec, KeepSpec
from pydantic import ValidationError

LOSSES = {10: 3.0, 20: 1.0, 30: None, 40: 2.0, 50: 4.0}
FOUND = {CheckpointId(step, 1): loss for step, loss in LOSSES.items()}


@pytest.mark.parametrize(
    ("keep", "steps"),
    [
        (KeepSpec(last=1), {50}),
        (KeepSpec(last=2), {40, 50}),
        (KeepSpec(last=9), {10, 20, 30, 40, 50}),
        (KeepSpec(last=1, every=20), {20, 40, 50}),
        (KeepSpec(last=1, best=1), {20, 50}),
        (KeepSpec(last=1, best=2), {20, 40, 50}),
        (KeepSpec(last=1, best=9), {10, 20, 40, 50}),
    ],
)
def test_kept_checkpoints(keep: KeepSpec, steps: set[int]) -> None:
    assert {checkpoint.step for checkpoint in to_keep(FOUND, keep)} == steps


def test_of_equal_losses_the_newer_is_better() -> None:
    found = {CheckpointId(step, 1): 1.0 for step in (1, 2, 3)} | {CheckpointId(4, 1): None}
    assert {checkpoint.step for checkpoint in to_keep(found, KeepSpec(last=1, best=1))} == {3, 4}


def test_a_number_means_the_newest() -> None:
    assert CheckpointSpec(keep=4).keep == KeepSpec(last=4)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        CheckpointSpec(keep=0)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        CheckpointSpec(every=0)


def test_the_interval_follows_cost_and_failures() -> None:
    day = 24 * 3600.0
    assert save_interval_s(None, 0.0, 0, 0.0) == 60.0
    assert save_interval_s(1.0, 1.0, 0, 0.0) == pytest.approx((2 * day) ** 0.5)  # Young's formula
    assert save_interval_s(4.0, 1.0, 0, 0.0) == pytest.approx(2 * save_interval_s(1.0, 1.0, 0, 0.0))
    assert save_interval_s(1.0, 1.0, 3, 0.0) == pytest.approx(save_interval_s(1.0, 1.0, 0, 0.0) / 2)
    assert save_interval_s(1e-6, 30.0, 0, 0.0) == 120.0  # never more than a quarter of the storage's time
