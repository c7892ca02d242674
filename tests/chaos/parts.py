"""Simulated database, tracker, data and sockets for the real control plane."""

from __future__ import annotations

import json
import queue
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drivetrain.cluster.protocols import AgentHandle
from drivetrain.coordinator.live_run import Work
from drivetrain.errors import StoreUnavailableError
from drivetrain.runs import events as ev
from drivetrain.runs import states as st
from drivetrain.runs.facts import RunFacts
from drivetrain.runs.store import RunRecord

if TYPE_CHECKING:
    from tests.chaos.world import World

DATASET = "/data/v1"


class CrashError(BaseException):
    """The coordinator dies here; its code must not catch this error."""


class Store:
    """The database. It survives the coordinator, and is sometimes unavailable."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._records: dict[str, RunRecord] = {}
        self._history: dict[str, list[tuple[float, str, st.State]]] = {}

    def create(self, run: str, state: st.State) -> None:
        self._records[run] = RunRecord(run, run, self._world.now, "", state, RunFacts())
        self._history[run] = []

    def get(self, run: str) -> RunRecord:
        return self._records[run]

    def unended(self, session: str | None = None) -> list[RunRecord]:
        living = [record for record in self._records.values() if not record.ended]
        return [record for record in living if session in (None, record.session)]

    def claim(self, run: str, session: str) -> None:
        self._change(run, session=session)

    def save(self, run: str, state: st.State, why: str) -> None:
        self._world.perhaps_crash()
        if self._world.chance(0.02):
            raise StoreUnavailableError("it is being restarted")
        before = self.get(run).state
        self._world.note(f"{run}: {before.phase} -> {state.phase} on {why}")
        state = st.from_record(json.loads(json.dumps(st.to_record(state))))  # as the database has it
        self._change(run, state=state)
        self._history[run].append((self._world.now, why, state))
        self._world.perhaps_crash()

    def update_facts(self, run: str, **changes: Any) -> None:
        self._world.perhaps_crash()
        if self._world.chance(0.02):
            raise StoreUnavailableError("it is being restarted")
        self._change(run, facts=self.get(run).facts.updated(**changes))

    def history(self, run: str) -> list[tuple[float, str, st.State]]:
        return self._history[run]

    def usage(self) -> tuple[dict[str, float], float]:
        return {}, 0.0

    def save_usage(self, shares: Any, now: float) -> None:
        pass

    def _change(self, run: str, **change: Any) -> None:
        record = self.get(run)
        known = {name: getattr(record, name) for name in ("fingerprint", "created", "session", "state", "facts")}
        self._records[run] = RunRecord(run, **{**known, **change})


class Inbox:
    """The queue of a run's loop: items are processed after a delay.

    Attributes:
        newest: what was taken last.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._items: deque[ev.Event | Work] = deque()
        self.newest: ev.Event | Work | None = None

    def put(self, item: ev.Event | Work) -> None:
        self._items.append(item)
        self._wake()

    def get(self, block: bool = True, timeout: float | None = None) -> ev.Event | Work:
        if not self._items:
            self.newest = None
            raise queue.Empty
        self.newest = self._items.popleft()
        return self.newest


class Tracker:
    """A tracker that discards everything but the newest steps."""

    identity: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    problem = ""

    def __init__(self) -> None:
        self._newest: dict[str, int] = {}

    def newest_step(self, series: str) -> int:
        return self._newest.get(series, 0)

    def metrics(self, series: str, step: int, at: float, values: dict[str, float]) -> bool:
        self._newest[series] = max(step, self.newest_step(series))
        return True

    def artifact(self, path: Path, folder: str | None = None) -> None:
        pass

    def begin(self) -> None:
        pass

    def tags(self, **values: object) -> None:
        pass

    def end(self, status: str) -> None:
        pass

    def flush(self, timeout_s: float) -> bool:
        return True

    def close(self) -> None:
        pass


class NoWork:
    """The steps before and after training, without any work: see `Preparation`, `Conclusion`, `Bookkeeping`."""

    def prepare(self, on_progress: Callable[[int, int, str], None]) -> RunFacts:
        return RunFacts(dataset=DATASET, dataset_version="v1")

    def conclude(self, agents: Sequence[AgentHandle], dataset: str, entropy: float | None) -> RunFacts:
        return RunFacts()

    def finish_uploads(self, agents: Sequence[AgentHandle], timeout_s: float) -> str:
        return ""

    def log_checkpoints(self) -> None:
        pass

    def account(self, store: Any) -> dict[str, Any]:
        return {}


class OwnerLock:
    """A run's lock. A process that dies releases it, so it is always free."""

    def release(self) -> None:
        pass
