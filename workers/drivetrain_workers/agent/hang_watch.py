"""Detection of ranks that hang, as opposed to ranks with a long step.

A thread of each rank reports twice a second which step and phase the main thread is in, for how long, and the longest
duration of that phase so far. The agent compares the two. The kernel reports whether a process is stopped.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from drivetrain_pipelines.storage.json_files import JsonObject

from drivetrain_workers.protocol.events import Beat, RankHung, RankId

_MIN_STOPPED_S = 1.0  # a process that is stopped for less time may only be inspected
_LIMIT_FACTOR, _MIN_LIMIT_S = 10.0, 30.0  # a phase hangs after ten times its longest duration so far
_DATA_LIMIT_S = 400.0  # the data reader waits 300 s for storage and transforming actors, and reports the missing one
_FIRST_PHASE_LIMIT_S = 600.0  # for a phase that has not ended before: it may compile, or load from slow storage
_STACK_TIMEOUT_S = 5.0
_PEER_REPORT_DELAY_S = 2.0
_COLLECTIVE_FRAMES = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "barrier", "wait")


@dataclass
class _RankState:
    beat: Beat
    at: float
    stopped_at: float | None = None


@dataclass
class HangWatch:
    """Watches the ranks of one generation. The caller provides the time and the state of processes.

    Args:
        hang_timeout_s: limit of the job for any phase; None: limits follow from observed durations.
    """

    hang_timeout_s: float | None = None
    _states: dict[int, _RankState] = field(default_factory=dict)

    def record_heartbeat(self, rank: int, beat: Beat, now: float) -> None:
        """Record the heartbeat of a rank."""
        before = self._states.get(rank)
        self._states[rank] = _RankState(beat, now, before.stopped_at if before else None)

    def record_stopped(self, rank: int, stopped: bool, now: float) -> None:
        """Record whether the process of a rank is stopped."""
        if state := self._states.get(rank):
            state.stopped_at = (state.stopped_at or now) if stopped else None

    def find_hung(self, now: float) -> list[int]:
        """Return the ranks that hang, the most likely cause first; empty if none does."""
        stopped = [
            r for r, s in self._states.items() if s.stopped_at is not None and now - s.stopped_at >= _MIN_STOPPED_S
        ]
        if stopped:
            return sorted(stopped)
        late = [
            rank for rank, state in self._states.items() if state.beat.for_s + now - state.at > self._limit(state.beat)
        ]
        return sorted(late, key=lambda rank: (self._states[rank].beat.phases, rank))

    def describe(self, rank: int, now: float) -> str:
        """Describe the phase of a rank and its duration, for messages."""
        state = self._states[rank]
        if state.stopped_at is not None:
            return f"its process is stopped, in phase {state.beat.phase!r} after step {state.beat.step}"
        phase = f"in phase {state.beat.phase!r} after step {state.beat.step}"
        return f"{phase} for {state.beat.for_s + now - state.at:.0f} s; the limit is {self._limit(state.beat):.0f} s"

    def _limit(self, beat: Beat) -> float:
        if self.hang_timeout_s is not None:
            return self.hang_timeout_s
        at_least_s = _DATA_LIMIT_S if beat.phase in ("data", "download") else _MIN_LIMIT_S
        return max(at_least_s, _LIMIT_FACTOR * beat.longest_s) if beat.longest_s else _FIRST_PHASE_LIMIT_S


class Supervisor(Protocol):
    """The part of `RankSupervisor` that `HangReporter` uses."""

    @property
    def generation(self) -> int:
        """Number of the newest generation."""

    @property
    def pids(self) -> dict[int, int]:
        """Process ids by rank."""

    def find_hung(self, is_stopped: Callable[[int], bool]) -> list[int]:
        """Return the ranks that hang, the most likely cause first."""

    def describe(self, rank: int) -> str:
        """Describe the phase of a rank."""


class HangReporter:
    """Checks the current generation for progress, and reports a hang once.

    Args:
        ranks: ranks of the node.
        report: called with the event.
        logs: folder for the stacks of all ranks.
        wait: sleeps for some seconds.
    """

    def __init__(
        self,
        ranks: Supervisor,
        report: Callable[[RankHung], None],
        logs: Path,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._ranks, self._report, self._logs, self._wait = ranks, report, logs, wait
        self._reported = 0

    def check(self) -> None:
        """Check once."""
        number = self._ranks.generation
        hung = self._ranks.find_hung(is_stopped)
        if hung and number != self._reported:
            self._reported = number
            self._report_hang(number, hung)

    def _report_hang(self, number: int, hung: list[int]) -> None:
        """Report the rank that the others wait for, and store the stacks of all ranks."""
        stacks = {rank: stack_of(pid) for rank, pid in self._ranks.pids.items()}
        cause = next((rank for rank in hung if not waits_for_peers(stacks.get(rank, []))), hung[0])
        stack = stacks.get(cause, [])
        if waits_for_peers(stack):
            self._wait(_PEER_REPORT_DELAY_S)  # the cause may be on another node, whose agent reports it
        log = self._logs / f"hang-{number}-ranks-{min(stacks, default=cause)}.txt"
        lines = [f"rank {rank}\n" + "".join(f"  {frame}\n" for frame in frames) for rank, frames in stacks.items()]
        log.write_text("\n".join(lines))
        frame = f", in {stack[0]}" if stack else ""
        phase = self._ranks.describe(cause)
        message = f"rank {cause} makes no progress: {phase}{frame}; all stacks are in {log}"
        self._report(RankHung(RankId(cause, number), message))


def is_stopped(pid: int) -> bool:
    """Check whether a process is stopped (SIGSTOP, SIGTSTP); a traced process does not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (FileNotFoundError, ProcessLookupError):
        return False


def stack_of(pid: int) -> list[str]:
    """Return the frames of a process's main thread, innermost first, with py-spy; also of a stopped process.

    Empty where the system does not permit it.
    """
    command = [str(Path(sys.executable).with_name("py-spy")), "dump", "--nonblocking", "--json", "--pid", str(pid)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_STACK_TIMEOUT_S, check=True)
        threads: list[JsonObject] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return []
    main = next((thread for thread in threads if thread["thread_name"] == "MainThread"), threads[0])
    return [f"{f['name']} ({f['short_filename'] or f['filename']}:{f['line']})" for f in main["frames"]]


def waits_for_peers(stack: list[str]) -> bool:
    """Check whether the innermost frames belong to a collective: such a rank waits for the one that hangs."""
    return any(frame.startswith(_COLLECTIVE_FRAMES) for frame in stack[:4])
