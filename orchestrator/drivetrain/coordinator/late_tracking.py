"""What runs that have ended could not send to the tracking server: it is sent when the server answers again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from drivetrain.runs.store import RunRecord, RunStore

_log = logging.getLogger(__name__)
_INTERVAL_S = 20.0  # so that a run is complete within a minute after the server answers


@dataclass(frozen=True)
class Sent:
    """The result of an attempt to send the rest of a run.

    Attributes:
        tracked: whether the tracking server has everything.
        deleted: whether the run was deleted there.
    """

    tracked: bool
    deleted: bool


class LateTracking:
    """Sends the rest of runs that have ended.

    Args:
        store: of all runs.
        send: sends the rest of one run.
    """

    def __init__(self, store: RunStore, send: Callable[[RunRecord], Sent]) -> None:
        self._store, self._send = store, send
        self._runs: set[str] = set()
        self._attempt = threading.Lock()

    def start(self) -> None:
        """Send in a thread from now on, also for runs that have ended before."""
        threading.Thread(target=self._run, name="late-tracking", daemon=True).start()

    def add(self, run_id: str) -> None:
        """Send the rest of a run once it has ended."""
        self._runs.add(run_id)

    def drop(self, run_id: str) -> None:
        """Send nothing of a run any more, because it is resumed; wait for an attempt that has begun."""
        with self._attempt:
            self._runs.discard(run_id)

    def send_once(self) -> None:
        """Try to send the rest of all runs that have ended; a server that does not answer is asked once."""
        silent: set[str] = set()
        for run_id in sorted(self._runs):
            with self._attempt:
                if run_id in self._runs:
                    self._try(run_id, silent)

    def _try(self, run_id: str, silent: set[str]) -> None:
        record = self._store.get(run_id)
        uri = record.facts.mlflow_uri
        if not record.ended or uri in silent:
            return
        if record.facts.tracked:
            self._runs.discard(run_id)
            return
        sent = self._send(record)
        if sent.tracked or sent.deleted:
            self._runs.discard(run_id)
        else:
            silent.add(uri)

    def _run(self) -> None:
        pause = threading.Event()
        try:
            self._runs |= {record.id for record in self._store.iterate(ended=True) if record.facts.tracked is False}
        except Exception:  # the runs that end from now on are sent nevertheless
            _log.exception("runs that MLflow has not received")
        while not pause.wait(_INTERVAL_S):
            try:
                self.send_once()
            except Exception:  # the next attempt may succeed
                _log.exception("sending to MLflow")
