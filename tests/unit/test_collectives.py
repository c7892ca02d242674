"""Collectives: the time spent in them, and the check between two processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from drivetrain_workers.engine import collectives
from drivetrain_workers.engine.collectives import CollectiveTimer

from tests.clock import Clock

_JOIN_AND_MEASURE = """
import sys, torch
import torch.distributed as dist
from drivetrain_workers.engine import collectives
from drivetrain_workers.engine.collectives import CollectiveTimer
from tests.clock import Clock

class Backend:
    def all_reduce(self, tensor, async_op=False):
        return dist.all_reduce(tensor, async_op=async_op)

    def barrier(self):
        clock.now += 2.0
        return dist.barrier()

clock = collectives.time = Clock()
rank = int(sys.argv[2])
dist.init_process_group("gloo", init_method=sys.argv[1], rank=rank, world_size=2)
backend = Backend()
communicated = CollectiveTimer(backend)
backend.barrier()
numbers = torch.full((3,), float(rank + 1))
work = backend.all_reduce(numbers, async_op=True)
work.wait()
assert work.is_completed()
print(communicated.take(), numbers.tolist())
dist.destroy_process_group()
"""


class Work:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.name = "gathering"

    def wait(self) -> str:
        self._clock.now += 4.0
        return "done"


class Backend:
    """Collectives that take a known time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def all_reduce(self, seconds: float, fail: bool = False) -> float:
        self._clock.now += seconds
        if fail:
            raise RuntimeError("a peer is gone")
        return seconds

    def broadcast(self, seconds: float) -> float:
        self._clock.now += 1.0
        return self.all_reduce(seconds)

    def all_gather(self) -> Work:
        self._clock.now += 0.5
        return Work(self._clock)

    def get_rank(self) -> int:
        self._clock.now += 100.0
        return 3


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(collectives, "time", clock)
    return clock


def test_time_in_collectives_adds_up(clock: Clock) -> None:
    backend = Backend(clock)
    communicated = CollectiveTimer(backend)
    assert communicated.take() == 0.0
    assert backend.all_reduce(2.0) == 2.0
    clock.now += 50.0  # computing
    assert backend.all_reduce(seconds=3.0) == 3.0
    assert backend.get_rank() == 3  # not a collective
    assert communicated.take() == 5.0
    assert communicated.take() == 0.0


def test_collectives_within_collectives_count_once(clock: Clock) -> None:
    backend = Backend(clock)
    communicated = CollectiveTimer(backend)
    backend.broadcast(2.0)
    assert communicated.take() == 3.0


def test_waiting_for_an_asynchronous_collective_counts(clock: Clock) -> None:
    backend = Backend(clock)
    communicated = CollectiveTimer(backend)
    work: Any = backend.all_gather()
    clock.now += 50.0  # computing in the meantime
    assert communicated.take() == 0.5
    assert work.wait() == "done"
    assert work.name == "gathering"
    assert communicated.take() == 4.0


def test_a_failed_collective_counts(clock: Clock) -> None:
    backend = Backend(clock)
    communicated = CollectiveTimer(backend)
    with pytest.raises(RuntimeError, match="a peer is gone"):
        backend.all_reduce(2.0, fail=True)
    assert communicated.take() == 2.0
    clock.now += 50.0
    backend.all_reduce(1.0)
    assert communicated.take() == 1.0


def both(arguments: list[str]) -> list[str]:
    """Return the output of two processes, which receive their ranks."""
    command = [sys.executable, *arguments]
    processes = [
        subprocess.Popen(
            [*command, str(rank), "2"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for rank in range(2)
    ]
    try:
        ends = [process.communicate(timeout=100) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], ends
    return [outputs for outputs, _ in ends]


def test_wrapped_collectives_return_correct_results(tmp_path: Path) -> None:
    assert both(["-c", _JOIN_AND_MEASURE, f"file://{tmp_path}/rendezvous"]) == ["2.0 [3.0, 3.0, 3.0]\n"] * 2


def test_the_check_sums_between_two_processes(tmp_path: Path) -> None:
    outputs = both(["-m", "drivetrain_workers.engine.all_reduce_check", f"file://{tmp_path}/rendezvous"])
    for found in map(json.loads, outputs):
        assert found["right"] is True
        assert found["bytes_per_s"] > 0
        assert found["backend"] in ("gloo", "nccl")


def test_the_check_notices_a_wrong_sum(tmp_path: Path) -> None:
    """One of the two adds a wrong number."""
    wrong = (
        "import sys, torch.distributed as dist\n"
        "from drivetrain_workers.engine import all_reduce_check as check\n"
        "right = dist.all_reduce\n"
        "def all_reduce(tensor, *arguments, **options):\n"
        "    if tensor.numel() > 1 and sys.argv[2] == '1':\n"
        "        tensor[-1] += 1\n"
        "    right(tensor, *arguments, **options)\n"
        "dist.all_reduce = all_reduce\n"
        "check.main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))\n"
    )
    outputs = both(["-c", wrong, f"file://{tmp_path}/rendezvous"])
    assert [json.loads(found)["right"] for found in outputs] == [False, False]
