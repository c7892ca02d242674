"""A run's books: its budget, its energy, its checkpoints in the tracker, its account."""

from __future__ import annotations

import time
from collections.abc import Callable

from drivetrain_pipelines.storage.checksums import JsonObject
from drivetrain_workers.checkpoints.store import describe_all
from drivetrain_workers.records.run_folder import RunFolder

from drivetrain.accounting.budget import History, overspent, since_resumed
from drivetrain.accounting.plot import draw_goodput
from drivetrain.accounting.run_account import account_of, timeline_of
from drivetrain.home import Home
from drivetrain.job.spec import BudgetSpec, JobSpec
from drivetrain.runs.states import Queued
from drivetrain.runs.store import RunStore
from drivetrain.tracking.tracker import Tracker


class Bookkeeping:
    """The books of one run.

    Args:
        spec: the resolved job.
        home: where its records are.
        folder: of the run.
        tracker: of the run.
    """

    def __init__(self, spec: JobSpec, home: Home, folder: RunFolder, tracker: Tracker) -> None:
        self._spec, self._home, self.folder, self._tracker = spec, home, folder, tracker

    def overspent(self, history: Callable[[], History], energy_j: float) -> str:
        """See `drivetrain.accounting.budget.overspent`; ``energy_j`` since the run was submitted or resumed."""
        if self._spec.budget == BudgetSpec():
            return ""
        return overspent(self._spec, since_resumed(history()), energy_j, time.time())

    def energy_since_resumed(self, history: History) -> float:
        """Return the joules that were logged since the run was submitted or resumed."""
        if history and isinstance(history[-1][2], Queued):  # it was resumed, and has not begun again yet
            return 0.0
        return self._tracker.totals.joules_since_begin

    def log_checkpoints(self) -> None:
        """Log the checkpoints that the run has kept."""
        for found in reversed([*describe_all(self.folder.checkpoints, verify_bytes=False)]):
            if not found.problem:
                loss = {} if found.eval_loss is None else {"eval_loss": found.eval_loss}
                metrics = {f"eval_{name}": value for name, value in found.metrics.items()}
                self._tracker.checkpoint(found.step, found.folder, {**loss, **metrics})

    def account(self, store: RunStore) -> JsonObject:
        """Draw up the account of the run at its end, and log it; return its figures."""
        found, now = account_of(self._home, store, self.folder.path.name), time.time()
        self._tracker.metrics("account", int(found.goodput.wall_s), now, found.metrics())
        picture = self.folder.path / "goodput.png"
        draw_goodput(timeline_of(self._home, store, self.folder.path.name), self._spec.name, picture)
        self._tracker.artifact(picture)
        return found.to_json()
