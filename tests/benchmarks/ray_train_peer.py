"""The peers' loop under Ray Train, with its own recovery (FailureConfig)."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks import peer_loop


def train(arguments: dict[str, Any]) -> None:
    """Run one worker's loop."""
    import ray.train

    rank = ray.train.get_context().get_world_rank()
    peer_loop.train(rank, arguments, lambda step: ray.train.report({"step": step}))


def main() -> None:
    """Run the trainer, with one allowed failure."""
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
