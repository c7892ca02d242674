from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from drivetrain_pipelines.errors import CorruptFileError, FetchError
from drivetrain_pipelines.order.mixture import SampleOrder
from drivetrain_workers.errors import RewindError
from drivetrain_workers.protocol.messages import Endpoint, Generation, RankTask
from drivetrain_workers.protocol.reasons import Reason
from drivetrain_workers.rank.failures import classify, explain
from drivetrain_workers.rank.guards import EarlyStop, LossGuard
from drivetrain_workers.records.adjustments import Adjustments, Positions, Skip
from drivetrain_workers.records.audit import audit
from drivetrain_workers.spec import EarlyStopSpec, GuardSpec
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.step_records import step_record

_MISMATCH = "Received data size doesn't match expected size. Is there a distributed collective mismatch in your code?"


def falling(steps: int) -> list[float]:
    noise = np.random.default_rng(0).normal(0, 0.05, steps)
    return [float(5 * math.exp(-step / 50) + 1 + noise[step]) for step in range(steps)]


def test_a_normal_curve_raises_no_alarm() -> None:
    guard = LossGuard(GuardSpec(), [])
    assert not any(guard.check(loss, 1.0) for loss in falling(500))


@pytest.mark.parametrize("losses", [falling(500), [0.0] * 30, [2.0] * 30])
def test_a_spike_is_detected_and_does_not_hide_the_next(losses: list[float]) -> None:
    guard = LossGuard(GuardSpec(), losses)
    for _ in range(100):
        alarm = guard.check(8.0, 1.0)
        assert alarm
        assert alarm.kind == "spike"
    assert guard.check(losses[-1], 1.0) is None


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (1.0, math.inf), (-math.inf, 1.0)])
def test_non_finite_values_are_detected(loss: float, norm: float) -> None:
    alarm = LossGuard(GuardSpec(), []).check(loss, norm)
    assert alarm
    assert alarm.kind == "non_finite"


@pytest.mark.parametrize("norm", [None, 1.0, math.inf])
def test_weights_are_checked_with_and_without_a_norm(norm: float | None) -> None:
    guard = LossGuard(GuardSpec(), [])
    alarm, fatal = guard.check(1.0, norm), guard.check(1.0, norm, weights_finite=False)
    assert (alarm is None) == (norm != math.inf)
    assert alarm is None or not alarm.fatal
    assert fatal
    assert (fatal.kind, fatal.fatal) == ("non_finite", True)


@given(st.lists(st.integers(0, 40), unique=True, max_size=10), st.integers(1, 7))
def test_steps_take_the_batches_that_are_not_skipped(skipped: list[int], global_batch: int) -> None:
    adjustments = Adjustments()
    for number in skipped:
        start = number * global_batch
        adjustments = adjustments.with_skip(Skip(start, start + global_batch, 0, ""))
    positions = Positions(global_batch, adjustments.skips)
    batches = [number * global_batch for number in range(60) if number not in skipped]
    assert [positions.start(step) for step in range(40)] == batches[:40]
    assert not any(positions.skipped(start) for start in batches)


def test_the_audit_accounts_for_skips() -> None:
    order = SampleOrder.of([[40]], [1], 0, 1, 8)
    skip = Skip(16, 24, 3, "loss nan")
    records = [step_record(n + 1, positions=(start, start + 8)) for n, start in enumerate((0, 8, 24, 32))]
    found = audit(records, order, 8, (skip,))
    assert found.problems == []
    assert found.skips == ["positions 16 to 24 after step 3: loss nan"]
    assert found.samples == 32
    assert audit(records, order, 8).problems


def test_adjustments_are_stored(tmp_path: Path) -> None:
    path = tmp_path / "adjustments.json"
    assert Adjustments.read(path) == Adjustments()
    written = Adjustments((Skip(8, 16, 2, "why"),), 4)
    written.write(path)
    assert Adjustments.read(path) == written
    path.write_text("{}")
    with pytest.raises(CorruptFileError):
        Adjustments.read(path)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), Reason.OUT_OF_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"), Reason.OUT_OF_MEMORY),
        (RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"), Reason.COLLECTIVE),
        (RuntimeError(f"[gloo/transport/tcp/pair.cc] {_MISMATCH}"), Reason.USER_CODE),
        (FileNotFoundError("/data/gloo/x"), Reason.STORAGE),
        (FetchError("s3://x", 1, "cut"), Reason.STORAGE),
        (RewindError(3, "nan"), Reason.REWOUND),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), Reason.USER_CODE),
        (KeyError("x"), Reason.USER_CODE),
    ],
)
def test_errors_have_a_reason(error: Exception, reason: Reason) -> None:
    assert classify(error) is reason


def test_ranks_that_use_different_parameters_have_a_reason() -> None:
    generation = Generation(1, 2, "file:///nowhere")
    task = RankTask(Endpoint("", ""), 0, 0, 1, generation, "", "", "")
    reason, message = explain(task, RuntimeError(f"pair.cc: {_MISMATCH}"))
    assert reason is Reason.USER_CODE
    assert "with training.zero_stage 2 or 3, have gradients for the same parameters" in message


def stops(spec: EarlyStopSpec | None, scores: list[float]) -> bool:
    early_stop = EarlyStop(spec)
    for score in scores:
        early_stop.add(score)
    return early_stop.is_due


@pytest.mark.parametrize(
    ("losses", "stop"),
    [([], False), ([3, 2, 1], False), ([3, 2, 2.5], False), ([3, 2, 2.5, 2], True), ([3, 2, 2.5, 1.9], False)],
)
def test_patience_ends(losses: list[float], stop: bool) -> None:
    assert stops(EarlyStopSpec(patience=2), losses) is stop
    assert stops(None, losses) is False


def test_a_too_small_improvement_does_not_count() -> None:
    assert stops(EarlyStopSpec(patience=2, min_delta=0.5), [3, 2.9, 2.6])
    assert not stops(EarlyStopSpec(patience=2, min_delta=0.5), [3, 2.9, 2.4])


def should_stop_early(spec: EarlyStopSpec, scores: list[float]) -> bool:
    """Implement the definition, over all scores of a run."""
    best, without = math.inf, 0
    for score in scores:
        better = score < best - spec.min_delta
        best, without = (score, 0) if better else (best, without + 1)
    return without >= spec.patience


@given(
    st.lists(st.floats(-5, 5) | st.sampled_from([math.nan, math.inf, -math.inf]), max_size=30),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.5]),
    st.sets(st.integers(0, 29)),
)
def test_early_stopping_decides_the_same_across_restarts(
    scores: list[float], patience: int, min_delta: float, restarts: set[int]
) -> None:
    """Its bounded state, stored as JSON at each restart, gives the same decisions as all scores."""
    spec = EarlyStopSpec(patience=patience, min_delta=min_delta)
    early_stop = EarlyStop(spec)
    for number, score in enumerate(scores):
        if number in restarts:
            stored = json.loads(json.dumps([early_stop.best, early_stop.since_best]))
            early_stop = EarlyStop(spec, *stored)
        early_stop.add(score)
        assert early_stop.is_due is should_stop_early(spec, scores[: number + 1])


@given(st.lists(st.floats(0, 100) | st.just(math.nan), max_size=80), st.sets(st.integers(0, 79)), st.integers(4, 20))
def test_the_guard_decides_the_same_across_restarts(losses: list[float], restarts: set[int], window: int) -> None:
    """Also after a spike that only causes a warning, and must not influence later checks."""
    spec = GuardSpec(window=window, spike="warn", non_finite="warn")
    undisturbed, guard = LossGuard(spec, []), LossGuard(spec, [])
    for number, loss in enumerate(losses):
        if number in restarts:
            guard = LossGuard(spec, json.loads(json.dumps(guard.losses)))
        assert guard.check(loss, 1.0) == undisturbed.check(loss, 1.0)
    assert len(guard.losses) <= window
