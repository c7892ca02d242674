"""The bytes that a plan counts are those that two real ranks send."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from drivetrain.planning.communication import traffic
from drivetrain.planning.memory_estimate import MAX_LIVE_PARAMETERS, Setting
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.communication_ranks import CASES, PARAMETERS, WIDTH

_RANKS = 2


def setting(stage: int, accumulation: int, workers: int = _RANKS, precision: str = "fp32") -> Setting:
    return Setting(stage, workers, 2, precision, "AdamW", accumulation=accumulation)


def test_the_bytes_of_a_plan_are_sent(tmp_path: Path) -> None:
    """For ZeRO 0 to 3, 1 and 4 micro-batches, with and without recomputation, in fp32 and bf16."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.unit.communication_ranks", f"{tmp_path}/rendezvous", str(rank), str(_RANKS)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(_RANKS)
    ]
    try:
        ends = [rank.communicate(timeout=250) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], ends
    for output, _ in ends:
        counted = [json.loads(line) for line in output.splitlines() if line.startswith('{"case"')]
        assert [tuple(each["case"]) for each in counted] == CASES
        for stage, accumulation, _, precision, kept in CASES:
            live = MAX_LIVE_PARAMETERS if kept else WIDTH * WIDTH  # the last matrix is never released
            planned = traffic(setting(stage, accumulation, precision=precision), PARAMETERS, PARAMETERS, live)
            sent = counted.pop(0)["sent"]
            case = (stage, accumulation, precision, kept)
            assert sum(sent.values()) * (_RANKS - 1) / _RANKS == pytest.approx(planned.total), case


@given(st.integers(0, 3), st.integers(1, 64), st.integers(1, 512), st.integers(1, 10**12))
def test_traffic_grows_with_micro_batches_only_where_gradients_are_divided(
    stage: int, accumulation: int, workers: int, parameters: int
) -> None:
    once = traffic(setting(stage, 1, workers), parameters, parameters)
    found = traffic(setting(stage, accumulation, workers), parameters, parameters)
    assert found.following == once.following
    factor = accumulation if stage >= 2 else 1
    assert math.isclose(found.overlapping, factor * once.overlapping)
    assert (found.total == 0) == (workers == 1)


def test_frozen_weights_are_gathered_and_have_no_gradients() -> None:
    whole, frozen = traffic(setting(3, 1), 1000, 1000), traffic(setting(3, 1), 1000, 0)
    assert frozen.total == whole.total / 2
    assert traffic(setting(2, 1), 1000, 0).total == 0
