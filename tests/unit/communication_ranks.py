"""Counts the bytes that DeepSpeed hands to gloo in one optimizer step, as a rank of a real process group.

Run as ``python -m tests.unit.communication_ranks RENDEZVOUS RANK WORLD_SIZE``; prints one JSON object per case.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

CASES = [  # ZeRO stage, micro-batches, recomputation, precision, whether ZeRO-3 keeps weights between the passes
    (stage, accumulation, recompute, precision, kept)
    for stage in (0, 1, 2, 3)
    for accumulation in (1, 4)
    for recompute in (False, True)
    for precision in ("fp32", "bf16")
    for kept in (True, False)
    if (stage or precision == "fp32") and (stage == 3 or (kept and not recompute))
]
WIDTH, BLOCKS = 512, 3  # matrices large enough for ZeRO-3 to partition them
PARAMETERS = WIDTH * WIDTH * BLOCKS * 2
_SMALLEST = 1000  # elements; smaller tensors are norms, flags and losses
_counted: dict[str, float] = {}


class _Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        self.down = torch.nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.down(torch.relu(self.up(values.to(self.up.weight.dtype))))
        return found


def _loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(batch["x"]).float().square().mean()  # type: ignore[no-any-return]


def _count(name: str, tensor: torch.Tensor, factor: float) -> None:
    """Add what a ring sends from each rank, as a multiple of ``(world size - 1) / world size``."""
    if tensor.numel() >= _SMALLEST:
        _counted[name] = _counted.get(name, 0.0) + factor * tensor.nbytes


def wrap_collectives() -> None:
    """Count the bytes of collectives; before DeepSpeed keeps references to them."""
    whole = {  # the argument that has the size of the whole message, and how often a ring sends it
        "all_reduce": (0, 2.0),
        "reduce": (0, 1.0),
        "broadcast": (0, 1.0),
        "all_gather_into_tensor": (0, 1.0),
        "_all_gather_base": (0, 1.0),
        "reduce_scatter_tensor": (1, 1.0),
        "_reduce_scatter_base": (1, 1.0),
    }

    def counting(name: str, original: Any, position: int, factor: float) -> Any:
        @functools.wraps(original)
        def call(*arguments: Any, **named: Any) -> Any:
            given = arguments[position] if len(arguments) > position else [*named.values()][position - len(arguments)]
            _count(name, given, factor)
            return original(*arguments, **named)

        return call

    def counting_lists(name: str, original: Any) -> Any:
        @functools.wraps(original)
        def call(tensors: list[torch.Tensor], *arguments: Any, **named: Any) -> Any:
            for tensor in tensors:
                _count(name, tensor, 1.0)
            return original(tensors, *arguments, **named)

        return call

    for name, (position, factor) in whole.items():
        if hasattr(dist, name):
            setattr(dist, name, counting(name, getattr(dist, name), position, factor))
    dist.all_gather = counting_lists("all_gather", dist.all_gather)


def main(rendezvous: str, rank: int, world_size: int) -> None:
    """Count the bytes of every case."""
    wrap_collectives()
    from drivetrain_workers.engine.batching import solve
    from drivetrain_workers.engine.engine import Engine, join_group
    from drivetrain_workers.modeling.objective import Objective, row_weight
    from drivetrain_workers.spec import TrainingSpec

    os.environ["OMP_NUM_THREADS"] = "1"
    device = join_group(rank, rank, world_size, rendezvous)
    released = {"zero_optimization": {"stage3_max_live_parameters": 1, "stage3_max_reuse_distance": 1}}
    for stage, accumulation, recompute, precision, kept in CASES:
        batch = 2 * accumulation * world_size
        given = {"steps": 4, "global_batch_size": batch, "micro_batch_size": 2, "zero_stage": stage}
        spec = TrainingSpec.model_validate(
            {
                **given,
                "precision": precision,
                "activation_checkpointing": recompute,
                "gradient_clipping": 1.0,
                "deepspeed": {} if kept else released,
            }
        )
        model = torch.nn.Sequential(*(_Block() for _ in range(BLOCKS)))
        engine = Engine(model, Objective(_loss, row_weight), spec, solve(batch, 2, world_size), 4, device)
        columns: Any = {"x": np.ones((2 * accumulation, WIDTH), np.float32)}
        for _ in range(2):  # the first step also sets up
            _counted.clear()
            engine.step(columns, 0)
        print(json.dumps({"case": [stage, accumulation, recompute, precision, kept], "sent": _counted}), flush=True)
        engine.deepspeed.destroy()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
