"""Uploads of checkpoints in the background, with unlimited retries."""

from __future__ import annotations

import threading
from collections.abc import Callable

import tenacity

from drivetrain_workers.checkpoints.remote import RemoteCheckpoints
from drivetrain_workers.records.run_folder import CheckpointId

_INITIAL_RETRY_DELAY_S, _MAX_RETRY_DELAY_S = 1.0, 60.0


class Uploader:
    """Keeps storage up to date with a run's folder. Training never waits for it.

    A failed upload is retried with growing delays until it succeeds or newer checkpoints replace it.

    Args:
        remote: the run's checkpoints in storage.
        on_uploaded: called for each uploaded checkpoint, from the background thread.
        on_problem: called with the problem of each failed attempt.
    """

    def __init__(
        self,
        remote: RemoteCheckpoints,
        on_uploaded: Callable[[CheckpointId], None],
        on_problem: Callable[[str], None],
    ) -> None:
        self._remote, self._on_uploaded, self._on_problem = remote, on_uploaded, on_problem
        self._news = threading.Condition()
        self._requested, self._finished = 0, 0  # number of requests, and the number of those that are done
        threading.Thread(target=self._run, name="upload", daemon=True).start()

    def wake(self) -> None:
        """Request an upload of new checkpoints."""
        with self._news:
            self._requested += 1
            self._news.notify_all()

    def finish(self, timeout_s: float) -> bool:
        """Wait until everything is uploaded; return False after ``timeout_s``."""
        self.wake()
        with self._news:
            asked = self._requested
            return self._news.wait_for(lambda: self._finished >= asked, timeout_s)

    def _run(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._requested > self._finished)
                asked = self._requested
            for attempt in tenacity.Retrying(
                wait=tenacity.wait_random_exponential(_INITIAL_RETRY_DELAY_S, _MAX_RETRY_DELAY_S),
                retry=tenacity.retry_if_exception_type(Exception),  # any error of a storage client
                before_sleep=self._report_failure,
            ):
                with attempt:
                    for checkpoint in self._remote.sync():
                        self._on_uploaded(checkpoint)
            with self._news:
                self._finished = asked
                self._news.notify_all()

    def _report_failure(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        self._on_problem(f"checkpoints are not uploaded yet (attempt {state.attempt_number}): {error!r:.300}")
