"""The Python API: what the command line does, for notebooks and scripts."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from drivetrain_pipelines.errors import InputError
from drivetrain_workers.protocol.reasons import Reason

from drivetrain.api.connect import require_training
from drivetrain.errors import TrackingError
from drivetrain.home import Home, user_name
from drivetrain.job.loading import Job, load_job
from drivetrain.runs.facts import RunFacts
from drivetrain.runs.view import RunView

if TYPE_CHECKING:
    from drivetrain.runs.store import RunRecord

OnView = Callable[[RunView], None]


def _ignore(_: RunView) -> None:
    """Ignore a view."""


@dataclass(frozen=True)
class RunSummary:
    """How a run ended.

    Attributes:
        reason: ``completed``, ``cancelled``, or why it failed.
        facts: losses, checkpoint, MLflow run, sample and other results.
    """

    run_id: str
    reason: str
    facts: RunFacts

    @property
    def succeeded(self) -> bool:
        """Whether the run is complete."""
        return self.reason == "completed"


def validate(job: str, overrides: Iterable[str] = (), try_it: bool = False) -> Job:
    """Check a job file, a folder with one, or a recipe.

    Args:
        overrides: ``section.key=value``.
        try_it: also try the job in a process of this machine: read the first records, build the model, make a step and
            an evaluation. The result is `Job.trial`.

    Raises:
        InputError: the first mistake.
    """
    checked = load_job(job, overrides)
    if not try_it:
        return checked
    require_training()
    from drivetrain.job.trial import try_job  # here: the client cannot try a job

    return replace(checked, trial=try_job(checked, Home.from_environment()))


def run(job: str, overrides: Iterable[str] = (), address: str | None = None, on_view: OnView = _ignore) -> RunSummary:
    """Run a job to its end. An interrupted run of the same job is resumed.

    Args:
        job: job file, folder with one, or recipe name.
        overrides: ``section.key=value``.
        address: Ray cluster to join.
        on_view: called with every new view of the run.

    Raises:
        InputError: the job is not valid, or the cluster can never run it; nothing was started.
    """
    checked = load_job(job, overrides)
    require_training()
    from drivetrain.api.session import open_session  # here: an invalid job is reported without waiting for Ray

    with open_session(address) as session:
        return _follow(session, session.run(checked).id, on_view)


def cancelled_run(job: str, overrides: Iterable[str] = ()) -> RunRecord | None:
    """Return the newest run of exactly this job, if it was cancelled after its first checkpoint."""
    fingerprint = load_job(job, overrides).fingerprint
    require_training()
    from drivetrain.runs.store import RunStore  # here: the client has no database

    home = Home.from_environment()
    newest = RunStore(home.database_url).page(1, fingerprint=fingerprint)
    stopped = [run for run in newest if run.facts.reason == Reason.CANCELLED and run.state.progress.committed_step]
    return stopped[0] if stopped else None


def resume(run_id: str, address: str | None = None, on_view: OnView = _ignore) -> RunSummary:
    """Resume a run, given by its id or a unique prefix, and follow it to its end."""
    require_training()
    from drivetrain.api.session import open_session  # here: as in `run`

    with open_session(address) as session:
        record = session.resume(run_id)
        if record.ended:
            return RunSummary(record.id, record.facts.reason, record.facts)
        return _follow(session, record.id, on_view)


def retry(run_id: str, address: str | None = None, on_view: OnView = _ignore) -> RunSummary:
    """Start a new run of a run's job, with the same code, and follow it to its end."""
    require_training()
    from drivetrain.api.session import open_session  # here: as in `run`

    with open_session(address) as session:
        return _follow(session, session.retry(run_id, user_name()).id, on_view)


def sync(run_id: str, timeout_s: float = 600.0) -> None:
    """Send to MLflow what it has not received, or not accepted, of a run that has ended.

    A run that was deleted in MLflow is restored, or logged again from the start.

    Raises:
        TrackingError: MLflow has not accepted everything within ``timeout_s``; the rest is kept.
        NotFoundError: there is no such run.
        InputError: the run has not ended, and sends its records itself; or it is being synced already.
    """
    from filelock import Timeout

    from drivetrain.coordinator.wiring import send_rest
    from drivetrain.runs.store import RunStore  # here: as in `run`

    home = Home.from_environment()
    store = RunStore(home.database_url)
    record = store.get(run_id)
    if not record.ended:
        fix = "A run sends its records itself while it runs; an interrupted one does so when it is resumed."
        raise InputError("RUN", f"{record.id}, which is {record.state.phase}", "a run that has ended", fix)
    begun = time.monotonic()
    try:
        sent = send_rest(home, store, record, timeout_s, remake=True)
    except Timeout as error:
        raise InputError("RUN", f"{record.id}, which is being synced", "one sync of a run at a time") from error
    if not sent.tracked:
        waited = time.monotonic() - begun >= timeout_s
        raise TrackingError(timeout_s if waited else 0.0, store.get(record.id).facts.tracking_problem)


def _follow(session: Any, run_id: str, on_view: OnView) -> RunSummary:
    view = RunView(run_id)
    with _interrupt_noted() as interrupted:
        for view in session.follow(run_id, interrupted.is_set):
            on_view(view)
    return RunSummary(run_id, view.facts.reason, view.facts)


@contextmanager
def _interrupt_noted() -> Iterator[threading.Event]:
    """Set the event on Ctrl-C or SIGTERM (which `ray job stop` sends); a second signal has its usual effect.

    An exception could be raised in a destructor or a callback of Ray's, where Python prints and ignores it.
    """
    noted = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread handles signals
        yield noted
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def note(*_: object) -> None:
        noted.set()
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        restore()
