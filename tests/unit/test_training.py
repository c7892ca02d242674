from __future__ import annotations

from typing import Any

import pytest
import torch
from drivetrain_pipelines.errors import InputError
from drivetrain_workers.engine.batching import solve, total_steps
from drivetrain_workers.engine.deepspeed_config import deepspeed_config, learning_rate_ratio
from drivetrain_workers.modeling.model import check_parameters, checkpoint_activations
from drivetrain_workers.modeling.objective import next_token_loss, next_token_weight
from drivetrain_workers.recipes.language_model.model import gpt
from drivetrain_workers.spec import OffloadSpec, OptimizerSpec, ScheduleSpec, TrainingSpec
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn


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
    assert ratio(0) == pytest.approx(0.1)  # no step has a learning rate of 0
    assert ratio(9) == ratio(10) == pytest.approx(1.0)
    assert ratio(100) == ratio(1000) == pytest.approx(end)
    values = [ratio(step) for step in range(10, 101)]
    assert values == sorted(values, reverse=True)


def test_passthrough_is_merged_last() -> None:
    spec = TrainingSpec(
        steps=1, zero_stage=2, deepspeed={"zero_optimization": {"overlap_comm": True}, "dump_state": True}
    )
    config = deepspeed_config(spec, solve(32, "auto", 2), on_cpu=True)
    assert config["zero_optimization"] == {"stage": 2, "overlap_comm": True}
    assert config["dump_state"] is True
    assert config["optimizer"]["params"]["torch_adam"] is True
    assert config["optimizer"]["params"]["adam_w_mode"] is True
    assert "torch_adam" not in deepspeed_config(spec, solve(32, "auto", 2), on_cpu=False)["optimizer"]["params"]


def test_settings_become_a_deepspeed_configuration() -> None:
    spec = TrainingSpec(
        steps=1,
        zero_stage=3,
        optimizer=OptimizerSpec(type="Lion", lr=0.1),
        offload=OffloadSpec(optimizer="nvme", parameters="cpu", nvme_path="/disk"),
    )
    config = deepspeed_config(spec, solve(32, "auto", 2), on_cpu=False)
    assert config["optimizer"] == {"type": "Lion", "params": {"lr": 0.1, "betas": (0.9, 0.95), "weight_decay": 0.1}}
    assert config["zero_optimization"] == {
        "stage": 3,
        "offload_optimizer": {"device": "nvme", "pin_memory": True, "nvme_path": "/disk"},
        "offload_param": {"device": "cpu", "pin_memory": True},
    }


@pytest.mark.parametrize("name", ["Lion", "Lamb"])
def test_optimizers_for_gpus_only(name: Any) -> None:
    spec = TrainingSpec(steps=1, optimizer=OptimizerSpec(type=name))
    with pytest.raises(InputError, match=f"got {name} on CPUs; allowed: Adam, AdamW or SGD"):
        deepspeed_config(spec, solve(32, "auto", 2), on_cpu=True)


@pytest.mark.parametrize(
    ("parameter", "precision", "problem"),
    [
        (torch.ones(2, dtype=torch.complex64), "fp32", r"trained parameter p is torch\.complex64"),
        (torch.ones(2, dtype=torch.complex64), "bf16", r"trained parameter p is torch\.complex64"),
        (torch.ones(2, dtype=torch.bfloat16), "fp32", r"torch\.bfloat16; .*Return model\.float\(\)"),
        (torch.ones(2, dtype=torch.float64), "fp32", r"torch\.float64"),
        (torch.ones(()), "fp32", r"parameter p has no dimensions; .*shape \[1\]"),
    ],
)
def test_weights_that_cannot_be_trained(parameter: torch.Tensor, precision: str, problem: str) -> None:
    model = nn.Linear(2, 2)
    model.register_parameter("p", nn.Parameter(parameter))
    with pytest.raises(InputError, match=problem):
        check_parameters(model, precision)


def test_weights_that_can_be_trained() -> None:
    model = nn.Linear(2, 2)
    model.register_parameter("narrow", nn.Parameter(torch.ones(2, dtype=torch.bfloat16)))
    check_parameters(model, "bf16")
    model.register_parameter("narrow", nn.Parameter(torch.arange(2), requires_grad=False))
    check_parameters(model, "fp32")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"zero_stage": 0, "offload": OffloadSpec(optimizer="cpu")}, "zero_stage 1, 2 or 3"),
        ({"zero_stage": 2, "offload": OffloadSpec(parameters="cpu")}, "needs zero_stage 3"),
        ({"zero_stage": 3, "offload": OffloadSpec(optimizer="nvme")}, "nvme_path"),
        ({"zero_stage": 3, "compile": "inductor"}, "compile needs zero_stage 0, 1 or 2"),
    ],
)
def test_invalid_combinations_are_rejected(settings: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        TrainingSpec(steps=1, **settings)  # type: ignore[arg-type]


def test_recomputed_activations_only_change_memory() -> None:
    """A network of 120 layers."""

    def gradients(recompute: bool) -> tuple[list[torch.Tensor], int]:
        torch.manual_seed(0)
        layers = [nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, 16)) for _ in range(120)]
        model = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        if recompute:
            assert checkpoint_activations(model) == 120
        kept = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        torch.manual_seed(1)
        x = torch.ones(8, 16)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            for layer in model["layers"]:
                x = x + layer(x)
            x.sum().backward()
        return [p.grad for p in model.parameters() if p.grad is not None], kept

    plain, kept = gradients(recompute=False)
    again, kept_again = gradients(recompute=True)
    assert len(plain) == 480
    assert all(map(torch.equal, plain, again))
    assert kept_again < kept / 5


def test_recomputing_does_not_count_twice() -> None:
    """Statistics of batch norm are the same with and without it."""

    def statistics(recompute: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)), nn.Linear(8, 1))
        if recompute:
            checkpoint_activations(model)
        for _ in range(3):
            model(torch.randn(16, 4)).sum().backward()
        return [*model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None)]

    plain, again = statistics(recompute=False), statistics(recompute=True)
    assert len(plain) == 3 + 6
    assert all(map(torch.equal, plain, again))


def test_a_model_without_blocks_cannot_recompute() -> None:
    with pytest.raises(InputError, match="for a Linear without"):
        checkpoint_activations(nn.Linear(2, 2))


def test_the_default_loss_is_a_mean_over_predicted_tokens() -> None:
    torch.manual_seed(0)
    model = gpt(11, 6, layers=1, width=8, heads=2)
    tokens = torch.randint(11, (3, 7))
    segments = torch.tensor([[1, 1, 1, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0]])
    batch = {"tokens": tokens, "segments": segments}
    assert int(next_token_weight(batch)) == 3 + 6
    assert int(next_token_weight({"tokens": tokens})) == 18
    parts = [{name: values[row : row + 1] for name, values in batch.items()} for row in range(3)]
    weights = [int(next_token_weight(part)) for part in parts]
    together = sum(weight * next_token_loss(model, part) for weight, part in zip(weights, parts, strict=True)) / 9
    assert torch.allclose(next_token_loss(model, batch), together)
    assert next_token_loss(model, parts[2]) == 0
