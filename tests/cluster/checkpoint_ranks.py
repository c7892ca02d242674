"""Ranks of `test_checkpoints`, forked by this script as the fork server forks them."""

from __future__ import annotations

import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from drivetrain_workers.batching import solve
from drivetrain_workers.checkpoints.load import Checkpoint, restore
from drivetrain_workers.checkpoints.save import CheckpointWriter
from drivetrain_workers.checkpoints.store import newest_valid
from drivetrain_workers.engine import Engine, join_group
from drivetrain_workers.run_folder import RunFolder
from drivetrain_workers.spec import OptimizerSpec, ScheduleSpec, TrainingSpec
from torch import nn

GLOBAL_BATCH, SAVED_AT = 6, 3


class Model(nn.Sequential):
    """Odd sizes, so that partitions end inside parameters; and a buffer, which the optimizer does not own."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3, bias=False))
        self.register_buffer("counter", torch.zeros(1, dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Count training passes, as batch norm would."""
        if self.training:
            self.counter += 1
        return super().forward(x.to(self[0].weight.dtype))


def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean squared error."""
    return (model(batch["x"]).float() - batch["y"]).pow(2).mean()


def rank_main(rank: int, arguments: dict[str, Any], rendezvous: str) -> None:
    """Train, saving at step 3 or going on from there."""
    folder, world_size = RunFolder(Path(arguments["folder"])), arguments["world_size"]
    device = join_group(rank, rank, world_size, rendezvous)
    spec = TrainingSpec(
        steps=arguments["steps"],
        global_batch_size=GLOBAL_BATCH,
        zero=arguments["stage"],
        precision=arguments["precision"],
        optimizer=OptimizerSpec(lr=1e-2),
        schedule=ScheduleSpec(warmup_steps=2),
    )
    torch.manual_seed(3)
    plan = solve(GLOBAL_BATCH, 2, world_size)
    engine = Engine(Model(), loss, spec, plan, arguments["steps"], device)
    writer = CheckpointWriter(folder, rank, world_size, 1, 1, lambda saved: None)
    found, _ = newest_valid(folder.checkpoints)
    first = 0
    if found:
        restore(engine.deepspeed, Checkpoint(found), rank, world_size)
        first = Checkpoint(found).step
    losses = []
    for step in range(first, arguments["steps"]):
        random = np.random.default_rng(step)
        x = random.standard_normal((GLOBAL_BATCH, 5)).astype(np.float32)
        y = random.standard_normal((GLOBAL_BATCH, 3)).astype(np.float32)
        rows = plan.rows(rank)
        losses.append(engine.step({"x": x[rows], "y": y[rows]}, stop_asked=False).loss)
        if step + 1 == SAVED_AT:
            writer.save(engine.deepspeed, step + 1, GLOBAL_BATCH * (step + 1), [])
    writer.wait()
    torch.distributed.barrier()
    if rank == 0:
        (folder.path / "losses.json").write_text(json.dumps(losses))


def main() -> None:
    """Fork the ranks and wait for them."""
    arguments = json.loads(sys.argv[1])
    rendezvous = Path(arguments["folder"]) / "rendezvous"
    rendezvous.unlink(missing_ok=True)
    fork = multiprocessing.get_context("fork")
    ranks = [
        fork.Process(target=rank_main, args=(rank, arguments, f"file://{rendezvous}"))
        for rank in range(arguments["world_size"])
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    sys.exit(any(process.exitcode for process in ranks))


if __name__ == "__main__":
    main()
