"""The training loop of the recovery benchmark's peers: DeepSpeed with its own checkpoints."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def train(rank: int, arguments: dict[str, Any], on_step: Callable[[int], None]) -> None:
    """Run one worker: resume from the newest checkpoint, record the process id and the time of every step."""
    import deepspeed
    import torch
    import torch.nn.functional as F
    from drivetrain_workers.recipes.language_model.model import gpt

    torch.set_num_threads(1)
    folder = Path(arguments["folder"])
    (folder / f"rank-{rank}.pid").write_text(str(os.getpid()))
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # no compiler, as in ours
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    model = gpt(arguments["vocab_size"], arguments["sequence_length"], **arguments["model"])
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=arguments["deepspeed"])
    checkpoints = folder / "checkpoints"
    if (checkpoints / "latest").exists():
        engine.load_checkpoint(str(checkpoints))
    rows = arguments["deepspeed"]["train_micro_batch_size_per_gpu"]
    while engine.global_steps < arguments["steps"]:
        tokens = torch.randint(arguments["vocab_size"], (rows, arguments["sequence_length"] + 1))
        logits = engine(tokens[:, :-1])
        engine.backward(F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten()))
        engine.step()
        if rank == 0:
            with (folder / "steps.txt").open("a") as file:
                file.write(f"{time.time()}\n")
        if engine.global_steps % arguments["checkpoint_every"] == 0:
            engine.save_checkpoint(str(checkpoints))
        on_step(engine.global_steps)


if __name__ == "__main__":  # under torchrun
    train(int(os.environ["RANK"]), json.loads(sys.argv[1]), lambda step: None)
