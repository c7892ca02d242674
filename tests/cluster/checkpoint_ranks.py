"""Ranks of the checkpoint tests, forked by this script as the fork server forks them.

``python -m tests.cluster.checkpoint_ranks CASES`` runs cases given as JSON one after another; see `Case`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from drivetrain_workers.checkpoints.load import Checkpoint, restore
from drivetrain_workers.checkpoints.proof import verify_state
from drivetrain_workers.checkpoints.save import CheckpointWriter, SavePoint
from drivetrain_workers.checkpoints.store import newest_valid
from drivetrain_workers.engine.batching import solve
from drivetrain_workers.engine.deepspeed_internals import flat_states
from drivetrain_workers.engine.engine import Engine, join_group
from drivetrain_workers.errors import ResumeMismatchError
from drivetrain_workers.modeling.objective import Objective, row_weight
from drivetrain_workers.protocol.events import RankId
from drivetrain_workers.protocol.processes import end_with_parent
from drivetrain_workers.records.run_folder import RunFolder
from drivetrain_workers.spec import KeepSpec, OffloadSpec, OptimizerSpec, ScheduleSpec, TrainingSpec
from torch import nn

GLOBAL_BATCH = 6


@dataclass(frozen=True)
class Case:
    """One gang, from its start to its end.

    Attributes:
        folder: of the run: checkpoints, and ``result.json`` with the losses by step.
        source: run folder whose newest valid checkpoint is loaded, if it has one; the run's own by default.
        save_every: steps between checkpoints.
        save_loaded: save what was loaded at once, too.
        generation: names this gang's checkpoints.
        tamper: change a weight by a millionth after loading.
        die_at_call: SIGKILL rank 0 at its n-th call that writes, syncs or renames a file; never where it is 0.
    """

    folder: str
    stage: int
    world_size: int
    steps: int = 6
    save_every: int = 3
    source: str = ""
    save_loaded: bool = False
    precision: str = "fp32"
    optimizer: str = "AdamW"
    offload: str = "none"
    generation: int = 1
    keep: int = 1
    die_at_call: int = 0
    tamper: bool = False


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
    """Return the mean squared error."""
    return (model(batch["x"]).float() - batch["y"]).pow(2).mean()


def rank_main(rank: int, case: Case, rendezvous: str) -> None:
    """Load what there is, train to the end, save as often as asked."""
    end_with_parent()
    unpickled: list[str] = []
    device = join_group(rank, rank, case.world_size, rendezvous)
    spec = TrainingSpec(
        steps=case.steps,
        global_batch_size=GLOBAL_BATCH,
        zero_stage=case.stage,
        precision=case.precision,
        optimizer=OptimizerSpec(type=case.optimizer, lr=1e-2),
        offload=OffloadSpec(optimizer=case.offload, parameters=case.offload if case.stage == 3 else "none"),
        schedule=ScheduleSpec(warmup_steps=2),
    )
    torch.manual_seed(3)
    plan = solve(GLOBAL_BATCH, 2, case.world_size)
    engine = Engine(Model(), Objective(loss, row_weight), spec, plan, 6, device)
    sys.addaudithook(lambda event, _: unpickled.append(event) if event == "pickle.find_class" else None)
    if rank == 0 and case.die_at_call:
        _die_at_call(case.die_at_call)
    writer = CheckpointWriter(
        RunFolder(Path(case.folder)),
        RankId(rank, case.generation),
        case.world_size,
        KeepSpec(last=case.keep),
        lambda _: None,
        0.0,
    )
    engine.before_update = writer.before_update
    found, problems = newest_valid(RunFolder(Path(case.source or case.folder)).checkpoints)
    torch.distributed.barrier()  # a rank that is ahead must not save what a slower one then finds
    first = 0
    if found:
        restore(engine.deepspeed, Checkpoint(found), rank, case.world_size)
        first = Checkpoint(found).step
        if case.tamper:
            flat_states(engine.deepspeed)[0].weights.view(-1)[3] += 1e-6
        try:
            verify_state(engine.deepspeed, Checkpoint(found), rank, case.world_size)
        except ResumeMismatchError as error:
            if not case.tamper:
                raise
            if rank == 0:
                (Path(case.folder) / "result.json").write_text(json.dumps({"refused": str(error)}))
            return
    unpickled_while_loading = list(unpickled)
    if case.save_loaded:
        writer.save(engine.deepspeed, SavePoint(first, GLOBAL_BATCH * first))
    losses = {}
    for step in range(first, case.steps):
        random = np.random.default_rng(step)
        x = random.standard_normal((GLOBAL_BATCH, 5)).astype(np.float32)
        y = random.standard_normal((GLOBAL_BATCH, 3)).astype(np.float32)
        rows = plan.rows(rank)
        losses[step + 1] = engine.step({"x": x[rows], "y": y[rows]}, GLOBAL_BATCH * step).loss
        if (step + 1) % case.save_every == 0:
            writer.save(engine.deepspeed, SavePoint(step + 1, GLOBAL_BATCH * (step + 1)))
    writer.wait()
    torch.distributed.barrier()
    if rank == 0:
        result = {"losses": losses, "problems": problems, "unpickled": unpickled_while_loading, "first": first}
        (Path(case.folder) / "result.json").write_text(json.dumps(result))


def _die_at_call(number: int) -> None:
    """Simulate a power failure at the n-th write, sync or rename of a file."""
    calls = 0

    def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **named)

        return wrapper

    os.fsync = deadly(os.fsync)
    os.rename = deadly(os.rename)
    Path.rename = deadly(Path.rename)  # type: ignore[method-assign]
    Path.open = deadly(Path.open)  # type: ignore[method-assign]
    Path.mkdir = deadly(Path.mkdir)  # type: ignore[method-assign]
    Path.unlink = deadly(Path.unlink)  # type: ignore[method-assign]
    os.rmdir = deadly(os.rmdir)


def start(case: Case) -> list[multiprocessing.context.ForkProcess]:
    """Fork the ranks of a case."""
    Path(case.folder).mkdir(parents=True, exist_ok=True)
    rendezvous = Path(case.folder) / "rendezvous"
    rendezvous.unlink(missing_ok=True)
    fork = multiprocessing.get_context("fork")
    ranks = [
        fork.Process(target=rank_main, args=(rank, case, f"file://{rendezvous}")) for rank in range(case.world_size)
    ]
    for process in ranks:
        process.start()
    return ranks


def main() -> None:
    """Run every case; the exit status says whether all ranks of all cases ended in order."""
    failed = False
    for case in json.loads(sys.argv[1]):
        ranks = start(Case(**case))
        for process in ranks:
            process.join()
        failed |= any(process.exitcode for process in ranks)
    sys.exit(failed)


if __name__ == "__main__":
    main()
