"""All-reduces in separate processes, so that a hanging collective does not block the doctor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass

from drivetrain.doctor.finding import Finding, failed, ok, run_check

_TIMEOUT_S = 120.0
_FIX = (
    "Let nodes reach one another on all TCP ports; with several networks, select one with "
    "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME."
)


def start(rendezvous: str, rank: int, world_size: int) -> subprocess.Popen[str]:
    """Start one process of an all-reduce on this machine."""
    command = [
        sys.executable,
        "-m",
        "drivetrain_workers.engine.all_reduce_check",
        rendezvous,
        str(rank),
        str(world_size),
    ]
    every_gpu = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}  # Ray hides them
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=every_gpu)


@dataclass(frozen=True)
class Outcome:
    """The result of one process: correctness of the sum, and speed."""

    right: bool
    bytes_per_s: float
    backend: str


def outcome(process: subprocess.Popen[str]) -> Outcome:
    """Return the result of a process of `start`.

    Raises:
        RuntimeError: the process failed or timed out.
    """
    try:
        output, errors = process.communicate(timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise RuntimeError(f"no answer from the other processes in {_TIMEOUT_S:.0f} s") from None
    if process.returncode:
        raise RuntimeError((errors.strip().splitlines() or ["it ended without output"])[-1])
    return Outcome(**json.loads(output.splitlines()[-1]))


def on_this_machine() -> Finding:
    """Run an all-reduce between two processes."""

    def check_function() -> Finding:
        with tempfile.TemporaryDirectory() as folder:
            both = [start(f"{folder}/rendezvous", rank, 2) for rank in range(2)]
            return verdict("all-reduce", [outcome(process) for process in both])

    return run_check(
        "all-reduce", check_function, "Reinstall torch; see the output of `python -m torch.utils.collect_env`."
    )


def verdict(check: str, outcomes: list[Outcome]) -> Finding:
    """Return the finding for the results of all processes."""
    if not all(found.right for found in outcomes):
        return failed(check, "the sum is wrong", "Test the memory of these machines before training on them.")
    slowest = min(found.bytes_per_s for found in outcomes)
    return ok(check, f"{len(outcomes)} processes by {outcomes[0].backend}: {slowest / 1e6:.0f} MB/s")


def all_reduce_failed(check: str, why: str) -> Finding:
    """Return the finding for nodes whose all-reduce failed."""
    return failed(check, why, _FIX)
