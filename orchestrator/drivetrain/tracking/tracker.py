"""A run's tracker: records go to the spool at once, and from there to MLflow in the background."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tenacity import RetryCallState, Retrying, sleep_using_event, stop_when_event_set, wait_exponential

from drivetrain.tracking.destination import Destination
from drivetrain.tracking.spool import Spool
from drivetrain.tracking.totals import Record, Totals

_log = logging.getLogger(__name__)
_BATCH_INTERVAL_S, _POLL_INTERVAL_S = 10.0, 0.05
_MIN_RETRY_DELAY_S, _MAX_RETRY_DELAY_S = 1.0, 30.0


class Tracker:
    """Everything that one run logs. No method waits for the tracking server, except `flush`.

    Args:
        spool: the run's.
        connect: makes the destination; called in the background, again after each failure.

    Attributes:
        identity: see `Destination`; empty until it was reached.
        problem: what the tracking server, or the way to it, answered last, unless it took what was sent.
    """

    def __init__(self, spool: Spool, connect: Callable[[], Destination]) -> None:
        self._spool, self._connect = spool, connect
        self._destination: Destination | None = None
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._closing = threading.Event()
        self.identity: dict[str, str] = {}
        self.problem = ""
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    @property
    def totals(self) -> Totals:
        """Totals over everything logged so far."""
        return self._spool.totals

    def logged_metrics(self) -> Iterator[Record]:
        """Yield all records of metrics that were logged so far, reading them from the spool."""
        return (record for record in self._spool.records() if record["op"] == "metrics")

    def newest_step(self, series: str) -> int:
        """Newest step that was logged in a series (``train``, ``eval``, ...); 0 before the first."""
        return self.totals.newest_step(series)

    def metrics(self, series: str, step: int, at: float, values: dict[str, float]) -> bool:
        """Metrics of one step. A step done again after a failure is the same step and is not logged again.

        Returns:
            Whether they were logged.
        """
        if step <= self.newest_step(series):
            return False
        self._append({"op": "metrics", "series": series, "step": step, "time_ms": int(at * 1000), "values": values})
        return True

    def params(self, values: dict[str, object]) -> None:
        """Parameters of the run; they never change."""
        self._append({"op": "params", "values": {key: str(value)[:6000] for key, value in values.items()}})

    def tags(self, **values: object) -> None:
        """Tags; a later value replaces an earlier one. Empty ones are left out."""
        written = {f"drivetrain.{key}": str(value)[:5000] for key, value in values.items() if value != ""}
        self._append({"op": "tags", "values": written})

    def dataset(self, name: str, version: str, location: str) -> None:
        """The dataset version that the run reads."""
        self._append({"op": "dataset", "name": name, "version": version, "folder": location})

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """A file, which must stay where it is until it is shipped."""
        self._append({"op": "artifact", "path": str(path), "folder": folder})

    def checkpoint(self, step: int, location: str, values: dict[str, float]) -> None:
        """A checkpoint that the run has kept, with what the model was worth then."""
        now = int(time.time() * 1000)
        self._append({"op": "checkpoint", "step": step, "location": location, "values": values, "time_ms": now})

    def register(self, name: str, folder: Path) -> None:
        """The trained model, in a folder, as a version of a registered model."""
        self._append({"op": "register", "name": name, "folder": str(folder)})

    def begin(self) -> None:
        """The run is running (again)."""
        self._append({"op": "begin"})

    def end(self, status: str) -> None:
        """The run has ended as ``status`` (FINISHED, FAILED or KILLED)."""
        self._append({"op": "end", "status": status, "time_ms": int(time.time() * 1000)})

    def flush(self, timeout_s: float) -> bool:
        """Wait until all is shipped; False when it is not, after ``timeout_s``. It stays in the spool then."""
        end, deadline = self._spool.size(), time.monotonic() + timeout_s
        while self._spool.shipped < end and time.monotonic() < deadline:
            self._wake.set()
            self._hurry.set()
            time.sleep(_POLL_INTERVAL_S)
        return self._spool.shipped >= end

    def close(self) -> None:
        """Stop shipping."""
        self._closing.set()
        self._wake.set()
        self._hurry.set()
        self._thread.join(timeout=30)
        self._spool.close()

    def _append(self, record: Record) -> None:
        self._spool.append(record)
        self._wake.set()

    def _run(self) -> None:
        until_it_arrives = Retrying(
            wait=wait_exponential(_MIN_RETRY_DELAY_S, max=_MAX_RETRY_DELAY_S),
            stop=stop_when_event_set(self._closing),
            sleep=sleep_using_event(self._closing),
            after=self._note_problem,
            retry_error_callback=lambda _: None,  # it is closing: what has not arrived stays in the spool
        )
        while not self._closing.is_set():
            until_it_arrives(self._ship_pending)

    def _ship_pending(self) -> None:
        """Ship what is pending, or wait until something is. Raises whatever a tracking server answers."""
        self._wake.clear()
        records, offset = self._spool.pending()
        if not records:
            self._wake.wait()
            return
        self._destination = self._destination or self._connect()
        self.identity = self._destination.identity
        self._destination.ship(records)
        self._spool.mark_shipped(offset)
        self.problem = ""
        self._hurry.wait(_BATCH_INTERVAL_S)  # what comes meanwhile goes into one request
        self._hurry.clear()

    def _note_problem(self, attempt: RetryCallState) -> None:
        """Training goes on and the spool keeps everything."""
        error = attempt.outcome and attempt.outcome.exception()
        self.problem = " ".join(str(error).split())[:300] or type(error).__name__
        _log.warning("tracking: %s; it is tried again", self.problem)
