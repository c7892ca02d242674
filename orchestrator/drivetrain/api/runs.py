"""The Python API: what the command line does, for notebooks and scripts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from drivetrain_pipelines.errors import InputError

from drivetrain.errors import TrackingError
from drivetrain.home import Home
from drivetrain.job.loading import Job, load_job
from drivetrain.runs.facts import RunFacts
from drivetrain.runs.view import RunView

OnView = Callable[[RunView], None]


def _ignore(_: RunView) -> None:
    """For callers who do not follow."""


@dataclass(frozen=True)
class RunSummary:
    """How a run ended.

    Attributes:
        reason: ``completed``, ``cancelled``, or why it failed.
        facts: figures and places: losses, checkpoint, MLflow run, sample.
    """

    run_id: str
    reason: str
    facts: RunFacts

    @property
    def succeeded(self) -> bool:
        """Whether all steps were done."""
        return self.reason == "completed"


def validate(job: str, overrides: Iterable[str] = ()) -> Job:
    """Check a job file, a folder with one, or a recipe's name. Raises `InputError` for the first mistake."""
    return load_job(job, overrides)


def run(job: str, overrides: Iterable[str] = (), address: str | None = None, on_view: OnView = _ignore) -> RunSummary:
    """Run a job to its end; an interrupted run of the very same job goes on.

    Args:
        job: job file, folder with one, or recipe name.
        overrides: ``section.key=value``.
        address: Ray cluster to join.
        on_view: called with every new view of the run.

    Raises:
        InputError: the job or the cluster does not allow it; nothing was started.
    """
    checked = load_job(job, overrides)
    from drivetrain.api.session import open_session  # here: a wrong job is told at once, without waiting for Ray

    with open_session(address) as session:
        return _follow(session, session.run(checked).id, on_view)


def resume(run_id: str, address: str | None = None, on_view: OnView = _ignore) -> RunSummary:
    """Go on with a run by its id (or a unique prefix)."""
    from drivetrain.api.session import open_session  # here: as in `run`

    with open_session(address) as session:
        record = session.resume(run_id)
        if record.ended:
            return RunSummary(record.id, record.facts.reason, record.facts)
        return _follow(session, record.id, on_view)


def sync(run_id: str, timeout_s: float = 600.0) -> None:
    """Ship what MLflow has not got yet of a run that has ended.

    Raises:
        TrackingError: MLflow has not taken everything by then; the rest is kept.
        InputError: there is no such run, or it goes on, and ships by itself.
    """
    from drivetrain.coordinator.wiring import tracker_of
    from drivetrain.runs.store import RunStore  # here: as in `run`

    home = Home.from_environment()
    store = RunStore(home.database_url)
    record = store.get(run_id)
    if not record.ended:
        fix = "One that goes on ships what it logs by itself; one that was interrupted does when it is resumed."
        raise InputError("RUN", f"{record.id}, which is {record.state.phase}", "a run that has ended", fix)
    tracker = tracker_of(home, record)
    tracked = tracker.flush(timeout_s)
    tracker.close()
    store.update_facts(record.id, tracked=tracked, tracking_problem=tracker.problem, **tracker.identity)
    if not tracked:
        raise TrackingError(timeout_s, tracker.problem)


def _follow(session: Any, run_id: str, on_view: OnView) -> RunSummary:
    view = RunView(run_id)
    with _interrupt_noted() as interrupted:
        for view in session.follow(run_id, interrupted.is_set):
            on_view(view)
    return RunSummary(run_id, view.facts.reason, view.facts)


@contextmanager
def _interrupt_noted() -> Iterator[threading.Event]:
    """Ctrl-C or SIGTERM (as of `ray job stop`) sets the event; a second one does what it did before.

    As an exception the first could hit a destructor or a callback of Ray's, where Python prints it and goes on.
    """
    noted = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals are none of its business
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
