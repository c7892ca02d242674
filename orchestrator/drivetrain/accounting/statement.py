"""A run's account: its time by class, and what it has cost."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from drivetrain_workers.records.step_times import read_turns

from drivetrain.accounting.cost import Cost, cost, worker_seconds
from drivetrain.accounting.goodput import Goodput, account, stays
from drivetrain.home import Home
from drivetrain.job.spec import JobSpec
from drivetrain.runs.store import RunStore
from drivetrain.tracking.spool import SpoolReader


@dataclass(frozen=True)
class Statement:
    """The account of one run, until it was drawn up."""

    goodput: Goodput
    cost: Cost

    def to_json(self) -> dict[str, Any]:
        """Figures by name."""
        return {
            "wall_s": self.goodput.wall_s,
            "goodput": self.goodput.share,
            "seconds": self.goodput.seconds,
            **asdict(self.cost),
        }

    def metrics(self) -> dict[str, float]:
        """The same, as they are logged."""
        found = {f"time/{name.replace(' ', '_')}_s": seconds for name, seconds in self.goodput.seconds.items()}
        costs = {name: value for name, value in asdict(self.cost).items() if isinstance(value, float)}
        return {"goodput": self.goodput.share, **found, **{f"cost/{name}": value for name, value in costs.items()}}


def account_of(home: Home, store: RunStore, run_id: str) -> Statement:
    """Draw up the account of a run from its records: until its end, or until now.

    Raises:
        InputError: there is no such run, or several.
    """
    record, now = store.get(run_id), time.time()
    folder, history = home.run(record.id), store.history(record.id)
    resources = JobSpec.model_validate_json(folder.job_resolved.read_text()).resources
    phases = [(at, state.phase, state.progress.generation) for at, _, state in history]
    energy_from = record.facts.get("energy_from", "")
    joules = SpoolReader(folder.spool).update().joules if energy_from else None
    spent = cost(worker_seconds(history, now), joules, energy_from, resources)
    return Statement(account(stays(record.created, phases, now), read_turns(folder.step_times)), spent)
