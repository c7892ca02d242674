"""The coordinator: one detached Ray actor that manages all runs of a cluster.

Training continues if it is killed: Ray restarts it, and it reads its records and reconnects to the agents by name.
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
    """An acquired lock; see `hold_owner_lock`."""

    def release(self) -> None:
        """Release the lock."""


class Coordinator:
    """The coordinator; it runs as a Ray actor with several threads.

    Args:
        store: of all runs.
        session: identifies this coordinator across restarts.
        build: creates the loop of a run.
        check: raises `InputError` if a run can never fit on the cluster.
        own: acquires a run's lock; raises `RunOwnedError` if another coordinator has it.
        status: returns the status of the cluster; see `Scheduler.status`.
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
            except Exception:  # an error of one run must not block the others
                _log.exception("run %s could not be resumed", record.id)

    def adopt(self, run_id: str, new: bool = False) -> None:
        """Manage a run from now on: start it, or resume it from its records. Idempotent.

        Args:
            new: whether the run was just submitted; only then a run that can never fit is rejected.

        Raises:
            RunOwnedError: another coordinator manages the run.
            InputError: the run does not fit on the cluster.
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
        """Return the view of a run; wait up to ``timeout_s`` for a version newer than ``known_version``."""
        if loop := self._loops.get(run_id):
            return loop.view(known_version, timeout_s)
        record = self._store.get(run_id)  # it ended before this coordinator started, or no coordinator manages it
        version = known_version + 1
        if not record.ended and known_version >= 0:
            time.sleep(timeout_s)
            version = known_version
        return RunView(run_id, phase=record.state.phase, version=version, facts=record.facts)

    def cancel(self, run_id: str) -> None:
        """Ask a run to save and end."""
        self.adopt(run_id)  # a run without a coordinator gets this one
        self._loops[run_id].cancel()

    def cluster(self) -> ClusterStatus:
        """Return the nodes with their runs, and the queue with the reason for each wait."""
        status = self._status()
        return replace(status, queue=tuple(self._with_reason(entry) for entry in status.queue))

    def _with_reason(self, entry: QueueEntry) -> QueueEntry:
        loop = self._loops.get(entry.request.run)
        return replace(entry, why=loop.waiting) if loop else entry


def hold_owner_lock(run_id: str, folder: Path) -> FileLock:
    """Hold a run's lock until its end, so that only one coordinator manages it. Raises RunOwnedError."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "owner.lock", timeout=0, thread_local=False)  # released by another thread
    try:
        lock.acquire()
    except Timeout as error:
        raise RunOwnedError(run_id) from error
    return lock
