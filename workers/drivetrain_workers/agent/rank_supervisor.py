"""The rank processes of one node: starts and ends generations through the fork server, and supervises each process.

Handles messages, not sockets or processes: messages of the fork server and the ranks are passed to
`RankSupervisor.receive`, and answers are sent through `Link`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from drivetrain_workers.agent.hang_watch import HangWatch
from drivetrain_workers.protocol.events import (
    AgentEvent,
    Beat,
    ForkServerReady,
    Heartbeat,
    PhaseReached,
    RankDone,
    RankEnded,
    RankExited,
    RankFailed,
    RankForked,
    RankId,
    RanksKilled,
)
from drivetrain_workers.protocol.messages import ForkRank, Generation, KillRanks, Message, RankTask, StopTraining
from drivetrain_workers.protocol.reasons import Reason

_EXIT_REPORT_DELAY_S = 1.0  # for the rank's own report, which comes over another socket
_PEER_REPORT_DELAY_S = 1.5  # longer, so that a cause is reported before its consequences
_FORK_SERVER_TIMEOUT_S = 900.0  # for its imports, which take minutes on a slow network disk
_KILL_TIMEOUT_S = 120.0  # for ranks to end after SIGKILL: one that waits for a disk ends late
START_TIMEOUT_S = _FORK_SERVER_TIMEOUT_S + _KILL_TIMEOUT_S  # limit of `RankSupervisor.start`
_UNREPORTED = "its end was not reported: the job's code, or a library, has ended the process (os._exit)"
_ENTRY = "drivetrain_workers.rank.main:main"

Delay = Callable[[float, Callable[[], None]], None]


class Link(Protocol):
    """Connection to a fork server or a rank."""

    def send(self, message: Message) -> None:
        """Send one message. Raises OSError when the other side is gone."""


class RankSupervisor:
    """The ranks of one node, over all generations. Thread-safe.

    Args:
        task_of: creates the task of a rank from its number and its generation.
        ranks: ranks of this node.
        report: called with events for the coordinator.
        hang_timeout_s: see `HangWatch`.
        delay: calls a function after some seconds, in another thread.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        task_of: Callable[[int, Generation], RankTask],
        ranks: range,
        report: Callable[[AgentEvent], None],
        hang_timeout_s: float | None,
        delay: Delay,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._task_of, self._ranks, self._report = task_of, ranks, report
        self._hang_after_s, self._delay, self._clock = hang_timeout_s, delay, clock
        self._changed = threading.Condition()
        self._fork_server: Link | None = None
        self._unconfirmed_kills = 0
        self._generation: Generation | None = None
        self._pids: dict[int, int] = {}  # by rank; these and the following belong to the current generation
        self._links: dict[int, Link] = {}
        self._failures: dict[RankId, RankFailed] = {}
        self._done: set[RankId] = set()
        self._running: set[int] = set()  # ranks that have not exited, forked or not
        self._watch = HangWatch(hang_timeout_s)

    @property
    def generation(self) -> int:
        """Number of the newest generation; 0 before the first."""
        return self._generation.number if self._generation else 0

    @property
    def pids(self) -> dict[int, int]:
        """Process ids by rank."""
        with self._changed:
            return dict(self._pids)

    def start(self, generation: Generation) -> None:
        """End all ranks of older generations, then fork the ranks of this one. A second call has no effect.

        Raises:
            TimeoutError: the fork server does not start, or older ranks do not end.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._fork_server, _FORK_SERVER_TIMEOUT_S):
                raise TimeoutError(f"the fork server has not started within {_FORK_SERVER_TIMEOUT_S:g} s")
            if self.generation >= generation.number:
                return
            self._watch = HangWatch(self._hang_after_s)
            self._generation = generation  # before the lock is released to wait: a second call must see it
            self._kill()
            if self.generation != generation.number:
                return  # replaced by a newer one
            assert self._fork_server
            for rank in self._ranks:
                # Watched from now on: a process that hangs before its first heartbeat is found, too.
                self._watch.record_heartbeat(rank, Beat(0, "fork", 0, 0.0, 0.0), self._clock())
                self._running.add(rank)
                task = self._task_of(rank, generation)
                self._fork_server.send(ForkRank(task.id, _ENTRY, task.to_json()))

    def stop(self) -> None:
        """Kill all ranks; return when they have ended."""
        with self._changed:
            self._kill()

    def request_stop(self) -> None:
        """Ask the ranks to save a checkpoint after the current step and to exit."""
        with self._changed:
            for link in self._links.values():
                with suppress(OSError):  # a rank that just died is reported by its exit
                    link.send(StopTraining())

    def receive(self, message: Message, link: Link) -> None:
        """Handle a message of the fork server or of a rank."""
        with self._changed:
            match message:
                case ForkServerReady():
                    self._fork_server = link
                    self._changed.notify_all()
                case RanksKilled():
                    self._unconfirmed_kills -= 1
                    self._changed.notify_all()
                case Heartbeat(source, beat):
                    if self._is_current(source):
                        self._watch.record_heartbeat(source.rank, beat, self._clock())
                case RankFailed(source):
                    self._failures[source] = message
                case RankDone(source):
                    self._done.add(source)
                case RankExited(source):
                    if self._is_current(source):
                        self._exited(message)
                case AgentEvent():
                    self._follow(message, link)
                    self._report(message)
                case _:
                    raise TypeError(f"{message} is not for an agent")

    def find_hung(self, is_stopped: Callable[[int], bool]) -> list[int]:
        """Return the ranks that hang, the most likely cause first; see `HangWatch.find_hung`.

        Args:
            is_stopped: checks whether a process is stopped.
        """
        with self._changed:
            now = self._clock()
            for rank, pid in self._pids.items():
                self._watch.record_stopped(rank, is_stopped(pid), now)
            return [rank for rank in self._watch.find_hung(now) if rank in self._running]

    def describe(self, rank: int) -> str:
        """Describe the phase of a rank; see `HangWatch.describe`."""
        with self._changed:
            return self._watch.describe(rank, self._clock())

    def _follow(self, event: AgentEvent, link: Link) -> None:
        match event:
            case RankForked(source, pid) if self._is_current(source):
                self._pids[source.rank] = pid
            case PhaseReached(source) if self._is_current(source):
                self._links[source.rank] = link

    def _is_current(self, source: RankId) -> bool:
        return self._generation is not None and source.generation == self._generation.number

    def _exited(self, event: RankExited) -> None:
        """Report that a rank of the current generation has ended. A generation that was killed reports nothing."""
        self._pids.pop(event.source.rank, None)
        self._running.discard(event.source.rank)
        failure = self._failures.get(event.source)
        if failure and failure.reason is Reason.COLLECTIVE:
            self._delay(_PEER_REPORT_DELAY_S, lambda: self._report_exit(event))
        elif event.code < 0 or failure or event.source in self._done:
            self._report_exit(event)
        else:
            self._delay(_EXIT_REPORT_DELAY_S, lambda: self._report_exit(event))

    def _report_exit(self, event: RankExited) -> None:
        with self._changed:
            failure, done = self._failures.get(event.source), event.source in self._done
        if failure:
            reason, message = failure.reason, failure.message
        elif done:
            self._report(event)
            return
        else:
            reason, message = (Reason.RANK_KILLED, "") if event.code < 0 else (Reason.USER_CODE, _UNREPORTED)
        self._report(RankEnded(event.source, event.code, reason, message, time=event.time))

    def _kill(self) -> None:
        """Make the fork server kill every rank, including pending ones, and wait for it."""
        self._pids.clear()
        self._links.clear()
        self._running.clear()
        if self._fork_server is None:
            return
        self._unconfirmed_kills += 1
        self._fork_server.send(KillRanks())
        if not self._changed.wait_for(lambda: not self._unconfirmed_kills, _KILL_TIMEOUT_S):
            raise TimeoutError(f"ranks have not ended within {_KILL_TIMEOUT_S:g} s after SIGKILL")
