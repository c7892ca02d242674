"""The coordinator: one detached Ray actor that looks after all runs of a cluster.

Killing it never stops training: Ray starts it again, it reads its records, finds the agents by name and goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from drivetrain.coordinator.run_loop import RunLoop
from drivetrain.errors import RunOwnedError
from drivetrain.runs.store import RunStore
from drivetrain.runs.view import RunView
from drivetrain.scheduling.status import ClusterStatus, QueueEntry

_log = logging.getLogger(__name__)


class OwnerLock(Protocol):
    """A lock that is held; see `hold_owner_lock`."""

    def release(self) -> None:
        """Let others have it."""


class Coordinator:
    """Runs as a Ray actor with several threads.

    Args:
        store: of all runs.
        session: names this coordinator over its restarts.
        build: makes the loop of a run.
        check: raises `InputError` when the cluster could never hold a run.
        own: holds a run's lock; raises `RunOwnedError` when another coordinator has it.
        status: of the cluster; see `Scheduler.status`.
    """

    def __init__(
        self,
        store: RunStore,
        session: str,
        build: Callable[[str], RunLoop],
        check: Callable[[str], None],
        own: Callable[[str], OwnerLock],
        status: Callable[[], ClusterStatus],
    ) -> None:
        self._store, self._session, self._build, self._check = store, session, build, check
        self._own, self._status = own, status
        self._lock = threading.Lock()
        self._loops: dict[str, RunLoop] = {}
        for record in store.unended(session=session):
            try:
                self.adopt(record.id)
            except Exception:  # one run's trouble must not keep the others waiting
                _log.exception("run %s could not be taken up again", record.id)

    def adopt(self, run_id: str, new: bool = False) -> None:
        """Look after a run from now on; it begins, or goes on where its records end. Twice is as good as once.

        Args:
            new: whether it was just submitted: one that could never run is refused then, and never later.

        Raises:
            RunOwnedError: somebody else does.
            InputError: the cluster cannot hold it.
        """
        if closing := self._loops.get(run_id):
            closing.wait_if_closing()
        with self._lock:
            loop = self._loops.get(run_id)
            if loop and not loop.ended:
                return
            if new:
                self._check(run_id)
            lock = self._own(run_id)
            try:
                self._store.claim(run_id, self._session)
                self._loops[run_id] = self._build(run_id)
            except BaseException:
                lock.release()
                raise
            self._loops[run_id].start(on_end=lock.release)

    def view(self, run_id: str, known_version: int = -1, timeout_s: float = 0.0) -> RunView:
        """Figures of a run; waits for news, at most ``timeout_s``."""
        if loop := self._loops.get(run_id):
            return loop.view(known_version, timeout_s)
        record = self._store.get(run_id)  # it ended before this coordinator was started, or nobody looks after it
        version = known_version + 1
        if not record.ended and known_version >= 0:
            time.sleep(timeout_s)
            version = known_version
        return RunView(run_id, phase=record.state.phase, version=version, facts=record.facts)

    def cancel(self, run_id: str) -> None:
        """Ask a run to save and end."""
        self.adopt(run_id)  # one that nobody looks after is ended by whoever does from now on
        self._loops[run_id].cancel()

    def cluster(self) -> ClusterStatus:
        """Return the nodes, the runs that have them, and the runs that wait, with the reasons."""
        status = self._status()
        return replace(status, queue=tuple(self._with_reason(entry) for entry in status.queue))

    def _with_reason(self, entry: QueueEntry) -> QueueEntry:
        loop = self._loops.get(entry.request.run)
        return replace(entry, why=loop.waiting) if loop else entry


def hold_owner_lock(run_id: str, folder: Path) -> FileLock:
    """Hold a run's lock until its end: two coordinators never look after one run. Raises RunOwnedError."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "owner.lock", timeout=0, thread_local=False)  # another thread releases it
    try:
        lock.acquire()
    except Timeout as error:
        raise RunOwnedError(run_id) from error
    return lock
