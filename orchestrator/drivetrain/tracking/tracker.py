"""A run's tracker: it writes records to the spool and ships them to MLflow in the background."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tenacity import RetryCallState, Retrying, sleep_using_event, stop_when_event_set, wait_exponential

from drivetrain.tracking.destination import DeletedError, Destination
from drivetrain.tracking.spool import Pending, Spool
from drivetrain.tracking.totals import Record, Totals

_log = logging.getLogger(__name__)
_BATCH_INTERVAL_S, _POLL_INTERVAL_S = 10.0, 0.05
_MIN_RETRY_DELAY_S, _MAX_RETRY_DELAY_S = 1.0, 30.0
_PROBLEM_LENGTH = 300
_LATE_INTERVAL_S = 60.0  # between attempts to ship what was not accepted while other records were


class Tracker:
    """Logs the data of one run. Only `flush` waits for the tracking server.

    Args:
        spool: of the run.
        connect: creates the destination; called in the background, and again after each failure.

    Attributes:
        identity: see `Destination`; empty until the first connection.
        problem: last error of the tracking server or the connection, or why some records are late; empty after a
            success.
        deleted: whether the run was deleted on the tracking server.
    """

    def __init__(self, spool: Spool, connect: Callable[[], Destination]) -> None:
        self._spool, self._connect = spool, connect
        self._destination: Destination | None = None
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._closing = threading.Event()
        self.identity: dict[str, str] = {}
        self.problem = ""
        self.deleted = False
        self._late_attempted = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    @property
    def notes(self) -> tuple[str, ...]:
        """What the tracking server has under another name or can never accept, and why."""
        return self._spool.mark.notes

    @property
    def totals(self) -> Totals:
        """Totals over all records so far."""
        return self._spool.totals

    def logged_metrics(self) -> Iterator[Record]:
        """Yield all metric records so far, read from the spool."""
        return (record for record in self._spool.records() if record["op"] == "metrics")

    def newest_step(self, series: str) -> int:
        """Return the newest step of a series (``train``, ``eval``, ...); 0 before the first."""
        return self.totals.newest_step(series)

    def metrics(self, series: str, step: int, at: float, values: dict[str, float]) -> bool:
        """Log the metrics of one step, unless the series already has this step.

        Returns:
            Whether they were logged.
        """
        if step <= self.newest_step(series):
            return False
        self._append({"op": "metrics", "series": series, "step": step, "time_ms": int(at * 1000), "values": values})
        return True

    def params(self, values: dict[str, object]) -> None:
        """Log parameters of the run; they never change."""
        self._append({"op": "params", "values": {key: str(value) for key, value in values.items()}})

    def tags(self, **values: object) -> None:
        """Log tags; a later value replaces an earlier one. Empty values are skipped."""
        written = {f"drivetrain.{key}": str(value) for key, value in values.items() if value != ""}
        self._append({"op": "tags", "values": written})

    def dataset(self, name: str, version: str, location: str) -> None:
        """Log the dataset version of the run."""
        self._append({"op": "dataset", "name": name, "version": version, "folder": location})

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Log a file, which must stay in place until it is shipped."""
        self._append({"op": "artifact", "path": str(path), "folder": folder})

    def checkpoint(self, step: int, location: str, values: dict[str, float]) -> None:
        """Log a checkpoint with its evaluation metrics."""
        now = int(time.time() * 1000)
        self._append({"op": "checkpoint", "step": step, "location": location, "values": values, "time_ms": now})

    def register(self, name: str, folder: Path) -> None:
        """Log the trained model in a folder as a version of a registered model."""
        self._append({"op": "register", "name": name, "folder": str(folder)})

    def begin(self) -> None:
        """Log that the run is running, possibly again."""
        self._append({"op": "begin"})

    def end(self, status: str) -> None:
        """Log the final status (FINISHED, FAILED or KILLED)."""
        self._append({"op": "end", "status": status, "time_ms": int(time.time() * 1000)})

    def flush(self, timeout_s: float) -> bool:
        """Wait until the tracking server has all records; the spool keeps the rest.

        Returns:
            Whether it has them. False after ``timeout_s``, or as soon as waiting cannot help: the run was deleted, or
            records are late although others are accepted.
        """
        begun = time.monotonic()
        end, deadline = self._spool.size(), begun + timeout_s
        while time.monotonic() < deadline and not self.deleted:
            if self._has_shipped(end):
                if not self._spool.mark.late:
                    return True
                if self._late_attempted > begun:
                    return False
            self._hurry.set()
            self._wake.set()
            time.sleep(_POLL_INTERVAL_S)
        return self._has_shipped(end) and not self._spool.mark.late

    def _has_shipped(self, end: int) -> bool:
        return self._destination is not None and self._spool.mark.offset >= end

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
        ship_with_retries = Retrying(
            wait=wait_exponential(_MIN_RETRY_DELAY_S, max=_MAX_RETRY_DELAY_S),
            stop=stop_when_event_set(self._closing),
            sleep=sleep_using_event(self._closing),
            after=self._note_problem,
            retry_error_callback=lambda _: None,  # closing: the spool keeps the rest
        )
        while not self._closing.is_set():
            ship_with_retries(self._ship_pending)

    def _ship_pending(self) -> None:
        """Ship pending records, or wait for some. Raises the errors of the tracking server."""
        self._wake.clear()
        destination = self._connected()
        pending = self._spool.pending()
        if pending.records:
            self._ship(destination, pending)
        elif self._spool.mark.late and (self._hurry.is_set() or self._late_due() <= 0):
            self._hurry.clear()
            self._ship(destination, self._spool.late())
            self._late_attempted = time.monotonic()
        else:
            self._wake.wait(self._late_due() if self._spool.mark.late else None)
            return
        self.problem = "; ".join(self._spool.mark.late.values())[:_PROBLEM_LENGTH]
        self.deleted = False
        if self._spool.mark.offset == self._spool.size():
            self._hurry.wait(_BATCH_INTERVAL_S)  # later records are batched into one request
            self._hurry.clear()

    def _connected(self) -> Destination:
        """Return the destination; the mark belongs to it from now on."""
        if self._destination is None:
            destination = self._connect()
            self._spool.store_mark(self._spool.mark.of(destination.identity))
            self.identity, self._destination = destination.identity, destination
        return self._destination

    def _ship(self, destination: Destination, pending: Pending) -> None:
        shipment = destination.ship(pending.records)
        self._spool.store_mark(self._spool.mark.after(shipment, pending.offsets, pending.end))

    def _late_due(self) -> float:
        """Return the seconds until late records are sent again."""
        return self._late_attempted + _LATE_INTERVAL_S - time.monotonic()

    def _note_problem(self, attempt: RetryCallState) -> None:
        """Store and log the error of a failed attempt; training continues, and the spool keeps all records."""
        error = attempt.outcome and attempt.outcome.exception()
        problem = " ".join(str(error).split())[:_PROBLEM_LENGTH] or type(error).__name__
        if problem != self.problem:
            _log.warning("tracking: %s; retrying", problem)
        self.problem, self.deleted = problem, isinstance(error, DeletedError)
