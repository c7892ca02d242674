from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from drivetrain_pipelines.errors import CorruptFileError, FetchError
from drivetrain_pipelines.order.mixture import SampleOrder
from drivetrain_workers.errors import RewindError
from drivetrain_workers.rank.failures import classify
from drivetrain_workers.rank.guards import LossGuard, should_stop_early
from drivetrain_workers.records.adjustments import Adjustments, Positions, Skip
from drivetrain_workers.records.audit import audit
from drivetrain_workers.spec import EarlyStopSpec, GuardSpec
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.step_records import step_record


def falling(steps: int) -> list[float]:
    noise = np.random.default_rng(0).normal(0, 0.05, steps)
    return [float(5 * math.exp(-step / 50) + 1 + noise[step]) for step in range(steps)]


def test_an_ordinary_curve_raises_no_alarm() -> None:
    guard = LossGuard(GuardSpec(), [])
    assert not any(guard.check(loss, 1.0) for loss in falling(500))


@pytest.mark.parametrize("losses", [falling(500), [0.0] * 30, [2.0] * 30])
def test_a_spike_is_seen_and_does_not_hide_the_next(losses: list[float]) -> None:
    guard = LossGuard(GuardSpec(), losses)
    for _ in range(100):
        alarm = guard.check(8.0, 1.0)
        assert alarm
        assert alarm.kind == "spike"
    assert guard.check(losses[-1], 1.0) is None


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (1.0, math.inf), (-math.inf, 1.0)])
def test_what_is_no_number_is_seen_at_once(loss: float, norm: float) -> None:
    alarm = LossGuard(GuardSpec(), []).check(loss, norm)
    assert alarm
    assert alarm.kind == "non_finite"


@given(st.lists(st.integers(0, 40), unique=True, max_size=10), st.integers(1, 7))
def test_steps_take_the_batches_that_are_not_passed_over(skipped: list[int], global_batch: int) -> None:
    adjustments = Adjustments()
    for number in skipped:
        start = number * global_batch
        adjustments = adjustments.with_skip(Skip(start, start + global_batch, 0, ""))
    positions = Positions(global_batch, adjustments.skips)
    batches = [number * global_batch for number in range(60) if number not in skipped]
    assert [positions.start(step) for step in range(40)] == batches[:40]
    assert not any(positions.skipped(start) for start in batches)


def test_the_audit_knows_what_was_passed_over() -> None:
    order = SampleOrder.of([[40]], [1], 0, 1, 8)
    skip = Skip(16, 24, 3, "loss nan")
    records = [step_record(n + 1, positions=(start, start + 8)) for n, start in enumerate((0, 8, 24, 32))]
    found = audit(records, order, 8, (skip,))
    assert found.problems == []
    assert found.skips == ["positions 16 to 24 after step 3: loss nan"]
    assert found.samples == 32
    assert audit(records, order, 8).problems


def test_adjustments_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "adjustments.json"
    assert Adjustments.read(path) == Adjustments()
    written = Adjustments((Skip(8, 16, 2, "why"),), 4)
    written.write(path)
    assert Adjustments.read(path) == written
    path.write_text("{}")
    with pytest.raises(CorruptFileError):
        Adjustments.read(path)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"), "out_of_memory"),
        (RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"), "collective"),
        (FileNotFoundError("/data/gloo/x"), "storage"),
        (FetchError("s3://x", 1, "cut"), "storage"),
        (RewindError(3, "nan"), "rewound"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "user_code"),
        (KeyError("x"), "user_code"),
    ],
)
def test_errors_have_a_class(error: Exception, kind: str) -> None:
    from drivetrain_workers.protocol.reasons import Reason

    assert classify(error) == kind
    assert Reason(kind)


@pytest.mark.parametrize(
    ("losses", "stop"),
    [([], False), ([3, 2, 1], False), ([3, 2, 2.5], False), ([3, 2, 2.5, 2], True), ([3, 2, 2.5, 1.9], False)],
)
def test_patience_ends(losses: list[float], stop: bool) -> None:
    assert should_stop_early(EarlyStopSpec(patience=2), losses) is stop
    assert should_stop_early(None, losses) is False


def test_better_by_too_little_is_not_better() -> None:
    assert should_stop_early(EarlyStopSpec(patience=2, min_delta=0.5), [3, 2.9, 2.6])
    assert not should_stop_early(EarlyStopSpec(patience=2, min_delta=0.5), [3, 2.9, 2.4])
