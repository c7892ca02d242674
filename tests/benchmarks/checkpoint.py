"""Wait time of training steps for a checkpoint: Drivetrain and DeepSpeed's synchronous save of the same engine."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.report import report

_ROUNDS, _RANKS = 5, 2
_MODEL = {"layers": 12, "width": 768, "heads": 12}  # of GPT-2 small
_VOCABULARY, _LENGTH, _ROWS = 20_000, 64, 2


def rank_main(rank: int, folder: Path) -> None:
    """Save in both ways, alternating, after a step each."""
    import numpy as np
    import torch.distributed as dist
    from drivetrain_workers.checkpoints.save import CheckpointWriter, SavePoint
    from drivetrain_workers.engine.batching import solve
    from drivetrain_workers.engine.engine import Engine, join_group
    from drivetrain_workers.modeling.objective import Objective, next_token_loss, next_token_weight
    from drivetrain_workers.protocol.events import RankId
    from drivetrain_workers.recipes.language_model.model import gpt
    from drivetrain_workers.records.run_folder import RunFolder
    from drivetrain_workers.spec import KeepSpec, TrainingSpec

    device = join_group(rank, rank, _RANKS, f"file://{folder}/rendezvous")
    plan = solve(_ROWS * _RANKS, "auto", _RANKS)
    spec = TrainingSpec(steps=100, zero_stage=1, global_batch_size=plan.global_batch)
    model = gpt(_VOCABULARY, _LENGTH, **_MODEL)
    engine = Engine(model, Objective(next_token_loss, next_token_weight), spec, plan, 100, device)
    saved: list[Any] = []  # `CheckpointCommitted`
    writer = CheckpointWriter(RunFolder(folder), RankId(rank, 1), _RANKS, KeepSpec(last=1), saved.append, time.time())
    tokens = np.random.default_rng(rank).integers(0, _VOCABULARY, (_ROWS, _LENGTH + 1))
    waited = 0.0

    def before_update() -> None:
        nonlocal waited
        began = time.perf_counter()
        writer.before_update()
        waited += time.perf_counter() - began

    def step() -> float:
        dist.barrier()
        began = time.perf_counter()
        engine.step({"tokens": tokens}, 0)
        return time.perf_counter() - began

    engine.before_update = before_update
    ours, theirs, overlapped, ordinary = [], [], [], []
    for number in range(_ROUNDS + 1):
        step()
        ordinary.append(step())
        waited, began = 0.0, time.perf_counter()
        writer.save(engine.deepspeed, SavePoint(number + 1, 0))
        waited += time.perf_counter() - began
        overlapped.append(step())
        ours.append(waited)
        writer.wait()
        step()
        dist.barrier()
        began = time.perf_counter()
        engine.deepspeed.save_checkpoint(str(folder / "native"), tag="only")
        theirs.append(time.perf_counter() - began)
    if rank == 0:
        figures = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "bytes_a_rank": saved[-1].bytes,
            "stall_s": ours[1:],  # the first one allocates the buffer
            "first_stall_s": ours[0],
            "write_s": [one.write_s for one in saved[1:]],
            "native_s": theirs[1:],
            "step_s": ordinary[1:],
            "step_overlapped_s": overlapped[1:],
        }
        (folder / "figures.json").write_text(json.dumps(figures))


def main() -> None:
    """Run the ranks; print the wait times of steps."""
    os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    folder = Path(tempfile.mkdtemp(prefix="drivetrain-bench-"))
    spawn = multiprocessing.get_context("spawn")
    try:
        ranks = [spawn.Process(target=rank_main, args=(rank, folder)) for rank in range(_RANKS)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        if any(process.exitcode for process in ranks):
            sys.exit("a rank failed; see above")
        figures = json.loads((folder / "figures.json").read_text())
    finally:
        shutil.rmtree(folder)
    ratio = statistics.median(o / t for o, t in zip(figures["stall_s"], figures["native_s"], strict=True))
    size = f"{figures['parameters'] / 1e6:.0f} M parameters, {figures['bytes_a_rank'] / 1e6:.0f} MB a rank"
    rows = [
        ["DeepSpeed's save_checkpoint", f"{statistics.median(figures['native_s']):.3f}", "1.000"],
        ["Drivetrain: the step waits", f"{statistics.median(figures['stall_s']):.3f}", f"{ratio:.3f}"],
        ["  the first time, when the buffer is allocated", f"{figures['first_stall_s']:.3f}", ""],
        ["a step", f"{statistics.median(figures['step_s']):.3f}", ""],
        [
            "  a step in parallel with copy and write",
            f"{statistics.median(figures['step_overlapped_s']):.3f}",
            "",
        ],
        ["  written, synced and committed in the background", f"{statistics.median(figures['write_s']):.3f}", ""],
    ]
    report("checkpoint", [size, "median s", "ratio"], rows, {**figures, "median_ratio": ratio})


if __name__ == "__main__":
    main()
