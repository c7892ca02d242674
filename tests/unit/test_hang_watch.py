from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading

import pytest
from drivetrain_workers.agent.hang_watch import HangWatch, is_stopped, stack_of, waits_for_peers
from drivetrain_workers.protocol.events import Beat
from drivetrain_workers.rank.heartbeat import HeartbeatThread

from tests.clock import Clock


def beat(phases: int, for_s: float = 0.0, longest_s: float = 1.0, phase: str = "step") -> Beat:
    return Beat(step=phases // 2, phase=phase, phases=phases, for_s=for_s, longest_s=longest_s)


def test_a_long_step_is_not_a_hang() -> None:
    watch = HangWatch()
    watch.record_heartbeat(0, beat(10, for_s=25.0), now=100.0)
    assert watch.find_hung(now=104.0) == []  # 29 s of 30
    assert watch.find_hung(now=106.0) == [0]
    watch.record_heartbeat(0, beat(11), now=107.0)
    assert watch.find_hung(now=108.0) == []
    watch.record_heartbeat(0, beat(12, for_s=100.0, longest_s=20.0), now=200.0)
    assert watch.find_hung(now=299.0) == []  # ten times the longest duration
    assert watch.find_hung(now=301.0) == [0]


def test_the_first_time_may_take_long() -> None:
    watch = HangWatch()
    watch.record_heartbeat(0, beat(1, for_s=300.0, longest_s=0.0), now=0.0)
    assert watch.find_hung(now=200.0) == []
    assert watch.find_hung(now=301.0) == [0]


def test_the_job_may_set_the_limit() -> None:
    watch = HangWatch(hang_timeout_s=5.0)
    watch.record_heartbeat(0, beat(1, for_s=4.0, longest_s=0.0), now=0.0)
    assert watch.find_hung(now=0.5) == []
    assert watch.find_hung(now=1.5) == [0]
    assert "the limit is 5 s" in watch.describe(0, now=1.5)


def test_the_slowest_rank_is_listed_first() -> None:
    watch = HangWatch()
    for rank, phases in enumerate([21, 20, 21]):
        watch.record_heartbeat(rank, beat(phases, for_s=40.0), now=0.0)
    assert watch.find_hung(now=1.0) == [1, 0, 2]


def test_a_stopped_process_is_detected_soon() -> None:
    watch = HangWatch()
    watch.record_heartbeat(0, beat(10), now=0.0)
    watch.record_heartbeat(1, beat(10), now=0.0)
    watch.record_stopped(1, stopped=True, now=0.5)
    assert watch.find_hung(now=1.0) == []
    watch.record_stopped(1, stopped=False, now=1.2)  # it was only inspected
    watch.record_stopped(1, stopped=True, now=1.4)
    assert watch.find_hung(now=2.0) == []
    watch.record_stopped(1, stopped=True, now=2.5)
    assert watch.find_hung(now=2.5) == [1]
    assert "stopped" in watch.describe(1, now=2.5)


def test_heartbeats_report_phase_and_longest_duration(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("drivetrain_workers.rank.heartbeat.time", clock)
    monkeypatch.setattr("drivetrain_workers.rank.heartbeat.HEARTBEAT_INTERVAL_S", 0.01)
    beats: queue.SimpleQueue[Beat] = queue.SimpleQueue()
    ended = threading.Event()

    def report(beat: Beat) -> None:
        if ended.is_set():
            raise ConnectionError("the agent is gone")  # ends the thread
        beats.put(beat)

    heartbeats = HeartbeatThread(report)
    for step, phase, lasts_s, longest_s in ((0, "step", 5, 0), (1, "step", 2, 5), (2, "data", 9, 0), (2, "step", 1, 5)):
        heartbeats.enter(phase, step)
        last = next(beat for beat in iter(beats.get, None) if (beat.phase, beat.step) == (phase, step))
        assert (last.for_s, last.longest_s) == (0, longest_s)
        clock.now += lasts_s
        last = next(beat for beat in iter(beats.get, None) if beat.for_s)
        assert (last.phase, last.step, last.for_s) == (phase, step, lasts_s)
    assert last.phases == 4
    ended.set()


def test_the_stack_of_a_process_can_be_read() -> None:
    code = "import time\ndef all_reduce():\n    print('in', flush=True)\n    time.sleep(60)\nall_reduce()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        assert not is_stopped(process.pid)
        os.kill(process.pid, signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        assert is_stopped(process.pid)
        stack = stack_of(process.pid)
        assert any(frame.startswith("all_reduce (<string>:") for frame in stack)
        assert waits_for_peers(stack)
        process.kill()
    assert not is_stopped(process.pid)
    assert stack_of(process.pid) == []
