"""A run's tracker: records go to the spool at once, and from there to MLflow in the background."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from drivetrain.tracking.spool import Record, Spool

_log = logging.getLogger(__name__)
_GATHER_S, _POLL_S = 10.0, 0.05
_FIRST_RETRY_S, _LAST_RETRY_S = 1.0, 30.0


class Destination(Protocol):
    """Where records are shipped to."""

    @property
    def identity(self) -> dict[str, str]:
        """Where people find the run there."""

    def ship(self, records: list[Record]) -> None:
        """Log all of them or raise; repeating is harmless."""


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
        self._newest_step: dict[str, int] = defaultdict(int)
        for record in spool.records():
            if record["op"] == "metrics":
                self._newest_step[record["series"]] = record["step"]
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._closing = False
        self.identity: dict[str, str] = {}
        self.problem = ""
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def records(self) -> list[Record]:
        """Everything logged so far."""
        return self._spool.records()

    def newest_step(self, series: str) -> int:
        """Newest step that was logged in a series (``train``, ``eval``, ...); 0 before the first."""
        return self._newest_step[series]

    def metrics(self, series: str, step: int, at: float, values: dict[str, float]) -> bool:
        """Metrics of one step. A step done again after a failure is the same step and is not logged again.

        Returns:
            Whether they were logged.
        """
        if step <= self._newest_step[series]:
            return False
        self._newest_step[series] = step
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
            time.sleep(_POLL_S)
        return self._spool.shipped >= end

    def close(self) -> None:
        """Stop shipping."""
        self._closing = True
        self._wake.set()
        self._hurry.set()
        self._thread.join(timeout=30)
        self._spool.close()

    def _append(self, record: Record) -> None:
        self._spool.append(record)
        self._wake.set()

    def _run(self) -> None:
        destination: Destination | None = None
        retry_s = _FIRST_RETRY_S
        while not self._closing:
            self._wake.clear()
            try:
                records, offset = self._spool.pending()
                if not records:
                    self._wake.wait()
                    continue
                destination = destination or self._connect()
                self.identity = destination.identity
                destination.ship(records)
                self._spool.mark_shipped(offset)
                self.problem = ""
                retry_s = _FIRST_RETRY_S
                self._hurry.wait(_GATHER_S)  # what comes meanwhile goes into one request
                self._hurry.clear()
            except Exception as error:  # whatever a tracking server answers, training goes on and the spool keeps all
                self.problem = " ".join(str(error).split())[:300] or type(error).__name__
                _log.warning("tracking: %s; again in %.0f s", self.problem, retry_s)
                self._wait_unless_closing(retry_s)
                retry_s = min(_LAST_RETRY_S, 2 * retry_s)

    def _wait_unless_closing(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._closing and time.monotonic() < deadline:
            time.sleep(0.1)
