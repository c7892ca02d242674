"""The ranks of a node, from the view of their supervisor and their agent; no process is started."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from drivetrain_workers.agent import rank_supervisor
from drivetrain_workers.agent.event_log import EventLog
from drivetrain_workers.agent.rank_supervisor import _UNREPORTED, RankSupervisor
from drivetrain_workers.protocol.events import (
    AgentEvent,
    Beat,
    CheckpointUploaded,
    ForkServerReady,
    Heartbeat,
    NodeMeasured,
    PhaseReached,
    RankDone,
    RankEnded,
    RankExited,
    RankFailed,
    RankForked,
    RankId,
    RanksKilled,
)
from drivetrain_workers.protocol.messages import (
    Endpoint,
    ForkRank,
    Generation,
    KillRanks,
    Message,
    RankTask,
    StopTraining,
)
from drivetrain_workers.protocol.reasons import Reason
from hypothesis import given
from hypothesis import strategies as st


class Link:
    """Records sent messages, and answers like the other side."""

    def __init__(self, answer: Callable[[Message], None] = lambda message: None) -> None:
        self.sent: list[Message] = []
        self._answer = answer

    def send(self, message: Message) -> None:
        self.sent.append(message)
        self._answer(message)


class Broken(Link):
    def send(self, message: Message) -> None:
        raise BrokenPipeError


def task_of(rank: int, generation: Generation) -> RankTask:
    return RankTask(Endpoint("a", "00"), rank, rank - 2, 2, generation, "/run", "/data", "/memory")


class Node:
    """A supervisor of ranks 2 and 3, with a fork server that kills without delay."""

    def __init__(self) -> None:
        self.now = 0.0
        self.reported: list[AgentEvent] = []
        self.delayed: list[Callable[[], None]] = []
        self.server = Link(self._answer)
        delay = lambda seconds, work: self.delayed.append(work)  # noqa: E731
        self.ranks = RankSupervisor(task_of, range(2, 4), self.reported.append, None, delay, lambda: self.now)

    def _answer(self, message: Message) -> None:
        if isinstance(message, KillRanks):
            self.ranks.receive(RanksKilled(), self.server)

    def started(self, number: int) -> Node:
        self.ranks.receive(ForkServerReady(), self.server)
        self.ranks.start(Generation(number, 4, "file:///r"))
        return self

    def forked(self, number: int) -> list[int]:
        return [m.source.rank for m in self.server.sent if isinstance(m, ForkRank) and m.source.generation == number]


def test_a_generation_is_forked_after_the_older_ranks_are_killed() -> None:
    node = Node().started(1)
    assert node.forked(1) == [2, 3]
    node.ranks.receive(RankForked(RankId(2, 1), 42), node.server)
    assert node.ranks.pids == {2: 42}
    node.ranks.start(Generation(2, 4, "file:///r"))
    kinds = [type(message) for message in node.server.sent]
    assert kinds == [KillRanks, ForkRank, ForkRank, KillRanks, ForkRank, ForkRank]
    assert node.ranks.pids == {}
    assert node.ranks.generation == 2


def test_a_repeated_or_late_start_has_no_effect() -> None:
    node = Node().started(3)
    before = list(node.server.sent)
    node.ranks.start(Generation(3, 4, "file:///r"))
    node.ranks.start(Generation(2, 4, "file:///r"))
    assert node.server.sent == before


def test_a_start_waits_for_the_fork_server() -> None:
    node = Node()
    thread = threading.Thread(target=node.ranks.start, args=(Generation(1, 4, "file:///r"),))
    thread.start()
    assert node.server.sent == []
    node.ranks.receive(ForkServerReady(), node.server)
    thread.join(10)
    assert node.forked(1) == [2, 3]


def test_a_start_replaced_by_a_newer_one_forks_nothing() -> None:
    node = Node()
    answers: list[Callable[[], None]] = []
    killing = threading.Event()

    def answer(message: Message) -> None:
        if isinstance(message, KillRanks):
            answers.append(lambda: node.ranks.receive(RanksKilled(), node.server))
            killing.set()

    node.server = Link(answer)
    node.ranks.receive(ForkServerReady(), node.server)
    threads = []
    for number in (1, 2):
        killing.clear()
        threads.append(threading.Thread(target=node.ranks.start, args=(Generation(number, 4, "file:///r"),)))
        threads[-1].start()
        assert killing.wait(10)
    for confirm in answers:
        confirm()
    for thread in threads:
        thread.join(10)
    assert node.forked(1) == []
    assert node.forked(2) == [2, 3]


def ended(code: int, reason: Reason, message: str = "why") -> RankEnded:
    return RankEnded(RankId(2, 1), code, reason, message, time=5.0)


DONE = RankDone(RankId(2, 1))
EXITED = RankExited(RankId(2, 1), 42, 0, time=5.0)


@pytest.mark.parametrize(
    ("code", "said", "at_once", "later"),
    [
        (-9, None, ended(-9, Reason.RANK_KILLED, ""), None),
        (1, Reason.STORAGE, ended(1, Reason.STORAGE), None),
        (0, Reason.STORAGE, ended(0, Reason.STORAGE), None),  # the error counts, not the exit code
        (0, DONE, EXITED, None),
        (1, Reason.COLLECTIVE, None, ended(1, Reason.COLLECTIVE)),  # the failure of its peer is to be reported first
        (0, None, None, ended(0, Reason.USER_CODE, _UNREPORTED)),  # its own report may not have arrived yet
        (1, None, None, ended(1, Reason.USER_CODE, _UNREPORTED)),
        (77, None, None, ended(77, Reason.USER_CODE, _UNREPORTED)),
    ],
)
def test_an_exit_is_reported_with_the_reason_of_the_rank(
    code: int, said: Reason | RankDone | None, at_once: AgentEvent | None, later: AgentEvent | None
) -> None:
    node = Node().started(1)
    if said:
        node.ranks.receive(said if isinstance(said, RankDone) else RankFailed(RankId(2, 1), said, "why"), Link())
    node.ranks.receive(RankExited(RankId(2, 1), 42, code, time=5.0), node.server)
    assert node.reported == ([at_once] if at_once else [])
    for work in node.delayed:
        work()
    assert node.reported == [at_once or later]


@given(
    st.sampled_from([["exit"], ["done", "exit"], ["exit", "done"], ["failed", "exit"], ["exit", "failed"]]),
    st.integers(-15, 255),
)
def test_only_a_rank_that_has_said_so_is_done(said: list[str], code: int) -> None:
    """Whatever a rank has said, in any order: its exit has one report, and success is a message, not a code."""
    node = Node().started(1)
    messages = {
        "done": DONE,
        "failed": RankFailed(RankId(2, 1), Reason.USER_CODE, "why"),
        "exit": RankExited(RankId(2, 1), 42, code, time=5.0),
    }
    for word in said:
        node.ranks.receive(messages[word], Link())
    for work in node.delayed:
        work()
    (report,) = node.reported
    heard = said if code >= 0 else said[: said.index("exit")]  # a killed rank has no more to say
    assert isinstance(report, RankExited) == ("done" in heard)


def test_a_report_that_comes_after_the_exit_still_counts() -> None:
    node = Node().started(1)
    node.ranks.receive(RankExited(RankId(3, 1), 42, 1, time=5.0), node.server)
    node.ranks.receive(RankFailed(RankId(3, 1), Reason.USER_CODE, "KeyError"), Link())
    (report,) = node.delayed
    report()
    assert node.reported == [RankEnded(RankId(3, 1), 1, Reason.USER_CODE, "KeyError", time=5.0)]


def test_messages_of_an_older_generation_are_ignored() -> None:
    node = Node().started(2)
    node.ranks.receive(RankForked(RankId(2, 1), 41), node.server)
    node.ranks.receive(RankExited(RankId(2, 1), 41, -9), node.server)
    assert node.ranks.pids == {}
    assert not any(isinstance(event, RankEnded) for event in node.reported)


def test_ranks_are_asked_to_stop_over_their_own_links() -> None:
    node = Node().started(1)
    living, dead = Link(), Broken()
    node.ranks.receive(PhaseReached(RankId(2, 1), "forked"), dead)
    node.ranks.receive(PhaseReached(RankId(3, 1), "forked"), living)
    node.ranks.request_stop()
    assert living.sent == [StopTraining()]


def test_a_silent_or_stopped_rank_hangs() -> None:
    node = Node().started(1)
    for rank, pid in ((2, 42), (3, 43)):
        node.ranks.receive(RankForked(RankId(rank, 1), pid), node.server)
        node.ranks.receive(Heartbeat(RankId(rank, 1), Beat(1, "step", 2, 0.0, 1.0)), Link())
    assert node.ranks.find_hung(lambda pid: False) == []
    node.now = 1.0
    assert node.ranks.find_hung(lambda pid: pid == 43) == []
    node.now = 3.0
    assert node.ranks.find_hung(lambda pid: pid == 43) == [3]
    assert "stopped" in node.ranks.describe(3)
    assert not any(isinstance(event, Heartbeat) for event in node.reported)


def test_a_rank_without_a_heartbeat_hangs() -> None:
    """It may hang before it has a connection, or its fork server may."""
    node = Node().started(1)
    node.ranks.receive(RankForked(RankId(3, 1), 43), node.server)
    node.ranks.receive(Heartbeat(RankId(3, 1), Beat(1, "step", 2, 0.0, 1.0)), Link())
    node.now = 601.0
    node.ranks.receive(Heartbeat(RankId(3, 1), Beat(9, "step", 9, 0.0, 1.0)), Link())
    assert node.ranks.find_hung(lambda pid: False) == [2]
    assert "in phase 'fork'" in node.ranks.describe(2)
    node.ranks.receive(RankExited(RankId(2, 1), 42, -9), node.server)
    assert node.ranks.find_hung(lambda pid: False) == []


def test_a_fork_server_that_never_starts_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_supervisor, "_FORK_SERVER_TIMEOUT_S", 0.0)
    with pytest.raises(TimeoutError, match="fork server has not started"):
        Node().ranks.start(Generation(1, 4, "file:///r"))


def test_ranks_that_cannot_be_killed_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_supervisor, "_KILL_TIMEOUT_S", 0.0)
    node = Node()
    node.server = Link()
    node.ranks.receive(ForkServerReady(), node.server)
    with pytest.raises(TimeoutError, match="not ended"):
        node.ranks.start(Generation(1, 4, "file:///r"))


def test_an_unexpected_message_is_an_error() -> None:
    with pytest.raises(TypeError, match="not for an agent"):
        Node().ranks.receive(StopTraining(), Link())


def test_the_log_numbers_events_and_wakes_its_reader() -> None:
    log = EventLog()
    found: list[Any] = []
    reader = threading.Thread(target=lambda: found.extend(log.read(0, 60.0)))
    reader.start()
    log.append(CheckpointUploaded("s3://a"))  # not a routine event: it is not delayed
    reader.join(10)
    assert [(logged.number, logged.event) for logged in found] == [(0, found[0].event)]
    log.append(NodeMeasured("n", {}, "estimate"))
    log.append(CheckpointUploaded("s3://b"))
    assert [logged.number for logged in log.read(1, 0.0)] == [1, 2]
    assert log.read(3, 0.0) == []


def test_messages_survive_a_socket() -> None:
    """Every type of message, with values that JSON alone would not restore."""
    import math

    from drivetrain_workers.protocol.events import StepDone
    from drivetrain_workers.protocol.messages import decode, encode
    from drivetrain_workers.protocol.step_record import Evaluation, StepRecord

    record = StepRecord(1, (0, 8), 2, 1, 0.1, math.inf, 1e-3, 5e-324, Evaluation(0.1 + 0.2, {"a": 1 / 3}, -0.0))
    for message in (
        StepDone(RankId(0, 1), record, 0.1, 0.0, 7),
        RankFailed(RankId(0, 1), Reason.OUT_OF_MEMORY, "m\n\u2028"),
        ForkRank(RankId(0, 1), "a:b", task_of(2, Generation(1, 4, "file:///r")).to_json()),
        KillRanks(),
        StopTraining(),
    ):
        assert decode(encode(message)) == message


def test_a_task_survives_serialization(tmp_path: Path) -> None:
    task = task_of(3, Generation(7, 4, "tcp://10.0.0.1:1"))
    assert RankTask.from_json(task.to_json()) == task
    assert task.id == RankId(3, 7)
