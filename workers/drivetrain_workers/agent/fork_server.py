"""The preloaded parent process of a node's rank processes.

Importing torch and DeepSpeed takes many seconds; forking from a process that has imported them takes milliseconds.
This process imports once, then forks a disposable rank for every request of its agent and reports each exit through
the process's own handle. It never creates a CUDA context or a thread, because neither survives a fork.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from typing import Any

from drivetrain_workers.protocol.events import ForkServerReady, RankExited, RankForked, RankId, RanksKilled
from drivetrain_workers.protocol.messages import Endpoint, ForkRank, KillRanks, Message, receive, send

# The first `deepspeed.initialize` of a process imports these lazily, which takes ten seconds or more.
PRELOAD = (
    "torch",
    "deepspeed",
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.zero.stage_1_and_2",
    "deepspeed.runtime.zero.stage3",
    "deepspeed.module_inject.auto_ep_layer",
    "drivetrain_workers.rank.main",
)


def preload() -> None:
    """Import what ranks need, except what DeepSpeed's autotuner would import: MLflow, and with it Ray."""
    sys.modules["mlflow"] = None  # type: ignore[assignment]  # makes the import fail
    for name in PRELOAD:
        importlib.import_module(name)
    del sys.modules["mlflow"]


def main() -> None:
    """Serve one agent, whose endpoint is in the environment, until it disconnects."""
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # checking for GPUs must not create a CUDA context before forks
    endpoint = Endpoint(os.environ["DRIVETRAIN_AGENT"], os.environ.pop("DRIVETRAIN_AGENT_KEY"))
    connection = endpoint.connect()
    preload()
    send(connection, ForkServerReady())
    fork = multiprocessing.get_context("fork")
    children: dict[int, tuple[ForkProcess, RankId]] = {}  # by sentinel
    while True:
        for ready in wait([connection, *children]):
            if not isinstance(ready, int):
                request = _receive_or_exit(connection)
                if isinstance(request, KillRanks):
                    _end(children)
                    send(connection, RanksKilled())
                    break  # some children that `wait` returned have ended
                assert isinstance(request, ForkRank)
                child = fork.Process(target=_run, args=(request.entry, request.task))
                child.start()
                assert child.pid
                children[child.sentinel] = (child, request.source)
                send(connection, RankForked(request.source, child.pid))
            else:
                child, source = children.pop(ready)
                child.join()
                assert child.pid
                assert child.exitcode is not None
                send(connection, RankExited(source, child.pid, child.exitcode))


def _end(children: dict[int, tuple[ForkProcess, RankId]]) -> None:
    """Send SIGKILL to every rank and wait until each has ended: a new generation must not overlap with the old one."""
    for child, _ in children.values():
        child.kill()
    for child, _ in children.values():
        child.join()
    children.clear()


def _receive_or_exit(connection: Any) -> Message:
    """Return the next request, or end this process when the agent is gone (its ranks detect that themselves)."""
    try:
        return receive(connection)
    except (EOFError, OSError):
        sys.exit(0)


def _run(entry: str, task: str) -> None:
    module, _, function = entry.partition(":")
    getattr(importlib.import_module(module), function)(task)


if __name__ == "__main__":
    main()
