"""A rank process: its connection to the agent, its end, and its dependence on its parent."""

from __future__ import annotations

import json
import mmap
import os
import queue
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from drivetrain_workers.protocol import processes
from drivetrain_workers.protocol.events import Heartbeat, ProblemFound, RankDone, RankFailed, RankId
from drivetrain_workers.protocol.messages import Endpoint, Generation, KillRanks, RankTask, StopTraining, receive, send
from drivetrain_workers.protocol.reasons import Reason
from drivetrain_workers.rank import agent_link
from drivetrain_workers.rank import main as rank_main
from drivetrain_workers.rank.agent_link import AgentLink
from drivetrain_workers.rank.peak_memory import peak_bytes, resident_bytes
from drivetrain_workers.rank.points import LoopPoints, Point
from drivetrain_workers.records.run_folder import RunFolder

_CHILD = """
import os, signal, sys
from drivetrain_workers.protocol.processes import end_with_parent
if os.fork() == 0:
    end_with_parent()
    print(os.getpid(), flush=True)
signal.pause()
"""
_ORPHAN = """
import os
from drivetrain_workers.protocol import processes
parents = iter([7, 1])
os.getppid = lambda: next(parents)
processes.end_with_parent()
"""
_YIELD = """
import json, os, threading
from drivetrain_workers.protocol.processes import lower_priority

done = threading.Event()
def thread(niceness):
    ready = threading.Event()
    def run():
        if niceness:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
        ready.set()
        done.wait()
    started = threading.Thread(target=run)
    started.start()
    ready.wait()
    return started.native_id

threads = [os.getpid(), thread(0), thread(15)]
lower_priority()
threads.append(thread(0))
print(json.dumps([[os.getpriority(os.PRIO_PROCESS, one), os.sched_getscheduler(one)] for one in threads]))
done.set()
"""
# Forks a rank for each case, and prints their exit codes.
_RANKS = """
import json, os, sys, threading
from drivetrain_pipelines.errors import InputError
from drivetrain_workers.rank import main as rank

def wrong_input(task, link):
    raise InputError("model.factory", "'net'", "a function")

def wrong_code(task, link):
    print("before the error")
    raise KeyError("pixels")

def interrupted(task, link):
    raise KeyboardInterrupt

cases = [
    lambda task, link: print("trained", task.rank),
    wrong_input,
    wrong_code,
    interrupted,
    rank.train,
    lambda task, link: threading.Event().wait(),
]
children = []
for number, train in enumerate(cases):
    child = os.fork()
    if child == 0:
        rank.train = train
        rank.main(sys.argv[1 + number])
        os._exit(99)
    children.append(child)
print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]))
"""


def task_of(endpoint: Endpoint, folder: Path, rank: int = 1) -> RankTask:
    return RankTask(endpoint, rank, 0, 1, Generation(3, 8, "file:///nowhere"), str(folder), "", "")


class Agent:
    """The agent's side of one rank's connection."""

    def __init__(self, listener: Listener, link: AgentLink, connection: Connection[Any, Any]) -> None:
        self.listener, self.link, self.connection = listener, link, connection

    def events(self) -> Iterator[Any]:
        while True:
            yield receive(self.connection)


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> queue.Queue[int]:
    """Collect the exit codes of the process."""
    codes: queue.Queue[int] = queue.Queue()
    monkeypatch.setattr(agent_link, "os", SimpleNamespace(_exit=codes.put))
    return codes


@pytest.fixture
def agent(tmp_path: Path, exits: queue.Queue[int]) -> Iterator[Agent]:
    endpoint = Endpoint.create()
    with endpoint.listen() as listener:
        links: queue.Queue[AgentLink] = queue.Queue()
        # The two sides authenticate each other, so neither can wait for the other in the same thread.
        Thread(target=lambda: links.put(AgentLink(task_of(endpoint, tmp_path))), daemon=True).start()
        connection = listener.accept()
        agent = Agent(listener, links.get(timeout=30), connection)
        yield agent
        if not connection.closed:
            connection.close()
            exits.get(timeout=30)


def test_events_and_heartbeats_reach_the_agent(agent: Agent) -> None:
    agent.link.enter("step", 12)
    events = agent.events()
    beat = next(event.beat for event in events if isinstance(event, Heartbeat) and event.beat.phases)
    assert (beat.step, beat.phase) == (12, "step")
    problem = ProblemFound("no more copies")
    agent.link.report(problem)
    assert next(event for event in events if not isinstance(event, Heartbeat)) == problem
    assert next(event for event in events if isinstance(event, Heartbeat)).source == RankId(1, 3)


def test_only_the_request_to_stop_stops(agent: Agent) -> None:
    send(agent.connection, KillRanks())  # not for ranks
    assert not agent.link.stop_requested.is_set()
    send(agent.connection, StopTraining())
    assert agent.link.stop_requested.wait(30)


def test_a_rank_ends_with_its_agent(agent: Agent, exits: queue.Queue[int]) -> None:
    agent.connection.close()
    assert exits.get(timeout=30) == 1
    assert not agent.link.stop_requested.is_set()


def test_without_an_agent_there_is_no_rank(tmp_path: Path) -> None:
    with pytest.raises(ConnectionRefusedError):
        AgentLink(task_of(Endpoint.create(), tmp_path))


def test_how_ranks_end(tmp_path: Path) -> None:
    """Each end is reported with its reason before the exit; the output is in the log of the rank."""
    folder, endpoint = RunFolder(tmp_path / "run"), Endpoint.create()
    tasks = [task_of(endpoint, folder.path, rank).to_json() for rank in range(6)]
    reports: dict[int, RankFailed | RankDone] = {}
    with endpoint.listen() as listener:
        command = [sys.executable, "-c", _RANKS, *tasks]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                connections = [listener.accept() for _ in tasks]
                for connection in connections:
                    rank, report = _heard(connection)
                    if report:
                        reports[rank] = report
                assert process.stdout
                codes = json.loads(process.stdout.read().splitlines()[-1])  # other lines are from DeepSpeed
            finally:
                process.kill()
    assert codes == [0, 1, 1, 1, 1, 1]
    assert {rank: report.reason for rank, report in reports.items() if isinstance(report, RankFailed)} == {
        1: Reason.INPUT,
        2: Reason.USER_CODE,
        3: Reason.USER_CODE,
        4: Reason.STORAGE,  # the run does not exist
    }
    assert [rank for rank, report in reports.items() if isinstance(report, RankDone)] == [0]
    texts = {rank: report.message for rank, report in reports.items() if isinstance(report, RankFailed)}
    assert texts[1] == "model.factory: got 'net'; allowed: a function"
    assert texts[2] == "KeyError: 'pixels'"
    assert folder.log(0).read_text() == "trained 0\n"
    log = folder.log(2).read_text()
    assert log.index("before the error") < log.index("in wrong_code")


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_rank_reports_that_training_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    steps: list[Any] = []

    @contextmanager
    def batches(*arguments: Any) -> Iterator[Iterator[str]]:
        steps.append(arguments)
        yield iter(["batch"])
        steps.append("closed")

    positions = SimpleNamespace(start=lambda step: 8 * step)
    run = SimpleNamespace(
        data=SimpleNamespace(batches=batches), plan="plan", positions=positions, step=3, complete=True, base_bytes=77
    )

    def train_steps(run: Any, batches: Iterator[str], points: str) -> None:
        steps.append(("trained", *batches, points))
        run.step = 9

    monkeypatch.setattr(rank_main, "open_run", lambda task, link: run)
    monkeypatch.setattr(rank_main, "standard_points", lambda run: "points")
    monkeypatch.setattr(rank_main, "train_steps", train_steps)
    monkeypatch.setattr(rank_main, "finish", lambda run, points: steps.append(("finished", points)))
    events: list[Any] = []
    task = task_of(Endpoint.create(), tmp_path, rank)
    rank_main.train(task, SimpleNamespace(report=events.append))  # type: ignore[arg-type]
    assert steps == [("plan", rank, 1, 24), ("trained", "batch", "points"), ("finished", "points"), "closed"]
    assert [(event.source, event.complete, event.base_bytes) for event in events] == (
        [] if rank else [(RankId(0, 3), True, 77)]
    )


def _heard(connection: Connection[Any, Any]) -> tuple[int, RankFailed | RankDone | None]:
    """Return the rank and its report of its end; the waiting rank loses its agent."""
    rank, failure = -1, None
    try:
        while True:
            event = receive(connection)
            if isinstance(event, Heartbeat | RankFailed | RankDone):
                rank = event.source.rank
            if isinstance(event, RankFailed | RankDone):
                failure = event
            if rank == 5:
                connection.close()
                return rank, None
    except (EOFError, OSError):
        return rank, failure


def test_a_process_ends_with_its_parent_for_any_reason() -> None:
    with subprocess.Popen([sys.executable, "-c", _CHILD], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        try:
            os.kill(child, 0)
            parent.kill()
            ready, _, _ = select.select([parent.stdout], [], [], 30)
            assert ready, "the child is still running"
            assert parent.stdout.read() == ""  # ends only when both have ended
        finally:
            parent.kill()
            if _is_alive(child):
                os.kill(child, signal.SIGKILL)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_process_whose_parent_has_died_ends_immediately() -> None:
    assert subprocess.run([sys.executable, "-c", _ORPHAN], check=False).returncode == 1


def test_a_failed_prctl_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    libc = SimpleNamespace(prctl=lambda *_: -1)
    monkeypatch.setattr(processes, "ctypes", SimpleNamespace(CDLL=lambda _: libc))
    with pytest.raises(OSError, match="PR_SET_PDEATHSIG"):
        processes.end_with_parent()


def test_all_threads_get_a_lower_priority() -> None:
    done = subprocess.run([sys.executable, "-c", _YIELD], capture_output=True, text=True, check=True)
    own = max(5, os.getpriority(os.PRIO_PROCESS, 0))
    batch = os.SCHED_BATCH
    assert json.loads(done.stdout) == [[own, batch], [own, batch], [max(15, own), batch], [own, batch]]


def test_resident_memory_and_its_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    size, margin = 256 << 20, 32 << 20
    before = resident_bytes()
    with mmap.mmap(-1, size) as memory:
        for page in range(0, size, mmap.PAGESIZE):
            memory[page] = 1
        used = resident_bytes()
    assert used - before > size - margin
    assert used - resident_bytes() > size - margin
    assert peak_bytes() > used - margin


def test_attached_functions_are_called_in_order() -> None:
    calls: list[tuple[str, str, int]] = []
    points = LoopPoints()
    points.phase.attach(lambda phase, step: calls.append(("first", phase, step)))
    points.phase.attach(lambda phase, step: calls.append(("second", phase, step)))
    points.phase("data", 4)
    assert calls == [("first", "data", 4), ("second", "data", 4)]
    points.after_save(4)  # no function is attached
    LoopPoints().phase("data", 5)  # of another rank
    assert len(calls) == 2


def test_an_error_of_an_attached_function_ends_the_point() -> None:
    calls: list[int] = []
    point: Point[[int]] = Point()

    def fail(step: int) -> None:
        raise ValueError(f"step {step}")

    for call in (calls.append, fail, calls.append):
        point.attach(call)
    with pytest.raises(ValueError, match="step 7"):
        point(7)
    assert calls == [7]
