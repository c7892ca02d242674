from __future__ import annotations

import pytest
from drivetrain_pipelines.errors import InputError
from drivetrain_workers.batching import solve, total_steps
from drivetrain_workers.deepspeed_config import deepspeed_config, learning_rate_ratio
from drivetrain_workers.spec import ScheduleSpec, TrainingSpec
from hypothesis import given
from hypothesis import strategies as st


@given(global_batch=st.integers(1, 500), world_size=st.integers(1, 64), micro=st.integers(1, 16))
def test_every_row_is_in_exactly_one_micro_batch(global_batch: int, world_size: int, micro: int) -> None:
    if global_batch < world_size:
        with pytest.raises(InputError, match=r"training\.global_batch_size"):
            solve(global_batch, "auto", world_size)
        return
    plan = solve(global_batch, min(micro, -(-global_batch // world_size)), world_size)
    rows = []
    for rank in range(world_size):
        own = plan.rows(rank)
        pieces = plan.micro_batches(rank)
        assert len(pieces) == plan.accumulation
        assert all(piece.stop - piece.start <= plan.micro_batch for piece in pieces)
        rows += [own.start + row for piece in pieces for row in range(piece.start, piece.stop)]
    assert rows == list(range(global_batch))


def test_auto_micro_batch_is_bounded() -> None:
    assert solve(8, "auto", 2).micro_batch == 4
    plan = solve(1000, "auto", 2)
    assert (plan.micro_batch, plan.accumulation) == (32, 16)


def test_total_steps() -> None:
    assert total_steps(7, None, 1000, 8) == 7
    assert total_steps(None, 2.0, 100, 8) == 25
    assert total_steps(None, 0.5, 100, 8) == 7
    assert total_steps(None, 0.001, 100, 8) == 1


@pytest.mark.parametrize(("kind", "end"), [("cosine", 0.1), ("linear", 0.1), ("constant", 1.0)])
def test_schedule(kind: str, end: float) -> None:
    ratio = learning_rate_ratio(ScheduleSpec(type=kind, warmup_steps=10, min_ratio=0.1), 100)  # type: ignore[arg-type]
    assert ratio(0) == pytest.approx(0.1)  # no step is wasted on a learning rate of 0
    assert ratio(9) == ratio(10) == pytest.approx(1.0)
    assert ratio(100) == ratio(1000) == pytest.approx(end)
    values = [ratio(step) for step in range(10, 101)]
    assert values == sorted(values, reverse=True)


def test_passthrough_is_merged_last() -> None:
    spec = TrainingSpec(steps=1, zero=2, deepspeed={"zero_optimization": {"overlap_comm": True}, "dump_state": True})
    config = deepspeed_config(spec, solve(32, "auto", 2), on_cpu=True)
    assert config["zero_optimization"] == {"stage": 2, "overlap_comm": True}
    assert config["dump_state"] is True
    assert config["optimizer"]["params"]["torch_adam"] is True
    assert "torch_adam" not in deepspeed_config(spec, solve(32, "auto", 2), on_cpu=False)["optimizer"]["params"]
