"""An all-reduce between processes, like in training: checks that it completes and is correct, and measures its speed.

Run as ``python -m drivetrain_workers.engine.all_reduce_check RENDEZVOUS RANK WORLD_SIZE``; prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from drivetrain_workers.engine.backend import GLOO, NCCL, init_process_group, use_loopback_only

_TIMEOUT = timedelta(seconds=60)
_NUMBERS, _ROUNDS = 4 << 20, 5  # 16 MiB of float32


def main(rendezvous: str, rank: int, world_size: int) -> None:
    """Join the other processes, sum with them, and print the result."""
    use_loopback_only(rendezvous)
    init_process_group(GLOO, rendezvous, rank, world_size, _TIMEOUT)
    backend, group, device = GLOO, None, torch.device("cpu")
    all_have_gpus = torch.tensor(torch.cuda.is_available())
    dist.all_reduce(all_have_gpus, dist.ReduceOp.MIN)
    if all_have_gpus:  # otherwise NCCL would leave out the nodes without GPUs
        backend, group = NCCL, dist.new_group(backend=NCCL.name, timeout=_TIMEOUT)
        device = torch.device("cuda", rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    seconds = []
    for _ in range(_ROUNDS):
        numbers = torch.full((_NUMBERS,), float(rank + 1), device=device)
        began = time.monotonic()
        dist.all_reduce(numbers, group=group)
        right = bool((numbers == world_size * (world_size + 1) / 2).all())  # also waits for the GPU
        seconds.append(time.monotonic() - began)
    dist.destroy_process_group()
    fastest = numbers.nbytes / min(seconds)
    print(json.dumps({"backend": backend.name, "right": right, "bytes_per_s": fastest}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
