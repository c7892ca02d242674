"""The same training under Ray Train, with its own way of recovering (FailureConfig) and DeepSpeed's own checkpoints."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def train(arguments: dict[str, Any]) -> None:
    """One worker's loop: resume from the newest checkpoint, note the time of every step."""
    import deepspeed
    import ray.train
    import torch
    import torch.nn.functional as F
    from drivetrain_workers.recipes.language_model.model import gpt

    torch.set_num_threads(1)
    rank = ray.train.get_context().get_world_rank()
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
        ray.train.report({"step": engine.global_steps})


def main() -> None:
    """Run the trainer; one failure is forgiven."""
    arguments = json.loads(sys.argv[1])
    os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "RAY_worker_niceness": "0"}
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    TorchTrainer(
        train,
        train_loop_config=arguments,
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=arguments["workers"], resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name="peer",
            storage_path=str(Path(arguments["folder"]) / "ray"),
            failure_config=FailureConfig(max_failures=1),
        ),
    ).fit()


if __name__ == "__main__":
    main()
