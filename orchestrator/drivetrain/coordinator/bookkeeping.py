"""Budget, energy, checkpoints and account of a run."""

from __future__ import annotations

import time
from collections.abc import Callable

from drivetrain_pipelines.storage.json_files import JsonObject
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
    """Budget, energy, checkpoints and account of one run.

    Args:
        spec: the resolved job.
        home: holds the records of the run.
        folder: of the run.
        tracker: of the run.
    """

    def __init__(self, spec: JobSpec, home: Home, folder: RunFolder, tracker: Tracker) -> None:
        self._spec, self._home, self.folder, self._tracker = spec, home, folder, tracker

    def overspent(self, history: Callable[[], History], energy_j: float) -> str:
        """Describe the spent budgets; see `drivetrain.accounting.budget.overspent`.

        Args:
            history: returns the transitions of the run.
            energy_j: energy used since the run was submitted or resumed, in joules.
        """
        if self._spec.budget == BudgetSpec():
            return ""
        return overspent(self._spec, since_resumed(history()), energy_j, time.time())

    def energy_since_resumed(self, history: History) -> float:
        """Return the energy logged since the run was submitted or resumed, in joules."""
        if history and isinstance(history[-1][2], Queued):  # resumed, but not started again
            return 0.0
        return self._tracker.totals.joules_since_begin

    def log_checkpoints(self) -> None:
        """Log the checkpoints of the run."""
        for found in reversed([*describe_all(self.folder.checkpoints, verify_bytes=False)]):
            if not found.problem:
                loss = {} if found.eval_loss is None else {"eval_loss": found.eval_loss}
                metrics = {f"eval_{name}": value for name, value in found.metrics.items()}
                self._tracker.checkpoint(found.step, found.folder, {**loss, **metrics})

    def account(self, store: RunStore) -> JsonObject:
        """Compute the account of the run at its end, log it and return its values."""
        found, now = account_of(self._home, store, self.folder.path.name), time.time()
        self._tracker.metrics("account", int(found.goodput.wall_s), now, found.metrics())
        picture = self.folder.path / "goodput.png"
        draw_goodput(timeline_of(self._home, store, self.folder.path.name), self._spec.name, picture)
        self._tracker.artifact(picture)
        return found.to_json()
