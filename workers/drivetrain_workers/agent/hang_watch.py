"""Telling a rank that hangs from one whose step is long.

A rank's own thread says twice a second where its main thread is: in which step and phase, for how long, and how long
that phase has taken at most before. The agent compares. A process that is stopped is seen in the kernel's word for it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drivetrain_workers.protocol.messages import Beat

_STOPPED_S = 1.0  # a process in the state "stopped" for so long was not only looked at
_TIMES, _AT_LEAST_S = 10.0, 30.0  # as long as ever before, ten times over, is a hang
_DATA_S = 400.0  # storage and transforming actors are waited for, for 300 s, by those who can say what is missing
_FIRST_S = 600.0  # for a phase that was not seen to end yet: it may compile, or load from slow storage
_STACK_TIMEOUT_S = 5.0
_IN_COLLECTIVE = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "barrier", "wait")


@dataclass
class _Seen:
    beat: Beat
    at: float
    stopped_at: float | None = None


@dataclass
class Watch:
    """The agent's side, for the ranks of one generation. Knows no clock and no process: both are told.

    Args:
        hang_after_s: the job's own limit for any phase; None goes by what was observed.
    """

    hang_after_s: float | None = None
    _seen: dict[int, _Seen] = field(default_factory=dict)

    def heard(self, rank: int, beat: Beat, now: float) -> None:
        """A rank has told where it is."""
        before = self._seen.get(rank)
        self._seen[rank] = _Seen(beat, now, before.stopped_at if before else None)

    def state(self, rank: int, stopped: bool, now: float) -> None:
        """Whether the kernel says that a rank's process is stopped."""
        if seen := self._seen.get(rank):
            seen.stopped_at = (seen.stopped_at or now) if stopped else None

    def late(self, now: float) -> list[int]:
        """Ranks that hang, the likeliest cause first; empty while all may be well."""
        stopped = [r for r, s in self._seen.items() if s.stopped_at is not None and now - s.stopped_at >= _STOPPED_S]
        if stopped:
            return sorted(stopped)
        late = [rank for rank, seen in self._seen.items() if seen.beat.for_s + now - seen.at > self._limit(seen.beat)]
        return sorted(late, key=lambda rank: (self._seen[rank].beat.phases, rank))

    def describe(self, rank: int, now: float) -> str:
        """For people: where a rank is, and since when."""
        seen = self._seen[rank]
        if seen.stopped_at is not None:
            return f"its process is stopped, in phase {seen.beat.phase!r} after step {seen.beat.step}"
        where = f"in phase {seen.beat.phase!r} after step {seen.beat.step}"
        return f"{where} for {seen.beat.for_s + now - seen.at:.0f} s; the limit is {self._limit(seen.beat):.0f} s"

    def progress(self, rank: int) -> int:
        """Phases begun by a rank."""
        return self._seen[rank].beat.phases

    def _limit(self, beat: Beat) -> float:
        if self.hang_after_s is not None:
            return self.hang_after_s
        at_least_s = _DATA_S if beat.phase in ("data", "download") else _AT_LEAST_S
        return max(at_least_s, _TIMES * beat.longest_s) if beat.longest_s else _FIRST_S


def is_stopped(pid: int) -> bool:
    """Whether a process was stopped (SIGSTOP, SIGTSTP); not whether a debugger holds it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (FileNotFoundError, ProcessLookupError):
        return False


def stack_of(pid: int) -> list[str]:
    """Frames of a process's main thread, innermost first, by py-spy; it reads a stopped process too.

    Empty where the system does not allow it.
    """
    command = [str(Path(sys.executable).with_name("py-spy")), "dump", "--nonblocking", "--json", "--pid", str(pid)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_STACK_TIMEOUT_S, check=True)
        threads: list[dict[str, Any]] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return []
    main = next((thread for thread in threads if thread["thread_name"] == "MainThread"), threads[0])
    return [f"{f['name']} ({f['short_filename'] or f['filename']}:{f['line']})" for f in main["frames"]]


def waits_for_peers(stack: list[str]) -> bool:
    """Whether the innermost frames are those of a collective: such a rank waits for the one that hangs."""
    return any(frame.startswith(_IN_COLLECTIVE) for frame in stack[:4])
