"""The peer: a plain DeepSpeed script without Drivetrain, started by torchrun, with preloaded tensors."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
import torch.nn.functional as F
from drivetrain_workers.recipes.language_model.model import gpt


def main(arguments_json: str) -> None:
    """Train for some steps and write the times of the steps to a file."""
    arguments = json.loads(arguments_json)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    model = gpt(arguments["vocab_size"], arguments["sequence_length"], **arguments["model"])
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=arguments["deepspeed"])
    rows = arguments["deepspeed"]["train_micro_batch_size_per_gpu"]
    data = torch.randint(arguments["vocab_size"], (64, rows, arguments["sequence_length"] + 1))
    times = []
    for step in range(arguments["steps"]):
        tokens = data[step % len(data)]
        logits = engine(tokens[:, :-1])
        engine.backward(F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten()))
        engine.step()
        times.append(time.time())
    if dist.get_rank() == 0:
        Path(arguments["times"]).write_text(json.dumps(times))


if __name__ == "__main__":
    main(sys.argv[1])
