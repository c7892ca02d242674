"""The account of a run: its time by class, and its cost."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import asdict, dataclass

from drivetrain_pipelines.storage.json_files import JsonObject
from drivetrain_workers.records.run_folder import RunFolder
from drivetrain_workers.records.step_times import read_iterations

from drivetrain.accounting.cost import Cost, cost, worker_seconds
from drivetrain.accounting.goodput import Goodput, PhaseInterval, Timeline, account, phase_intervals
from drivetrain.accounting.running_totals import RunningTotals
from drivetrain.home import Home
from drivetrain.job.spec import stored_spec
from drivetrain.runs.store import RunRecord, RunStore, TransitionRecord
from drivetrain.tracking.spool import SpoolReader

_MAX_CACHED_RUNS = 1000  # some tens of kilobytes each


@dataclass(frozen=True)
class RunAccount:
    """The account of one run at one point in time."""

    goodput: Goodput
    cost: Cost

    def to_json(self) -> JsonObject:
        """Return the values by name."""
        return {
            "wall_s": self.goodput.wall_s,
            "goodput": self.goodput.share,
            "seconds": self.goodput.seconds,
            **asdict(self.cost),
        }

    def metrics(self) -> dict[str, float]:
        """Return the values as metrics for the tracker."""
        found = {f"time/{name.replace(' ', '_')}_s": seconds for name, seconds in self.goodput.seconds.items()}
        costs = {name: value for name, value in asdict(self.cost).items() if isinstance(value, float)}
        return {"goodput": self.goodput.share, **found, **{f"cost/{name}": value for name, value in costs.items()}}


class RunAccountCache:
    """Accounts of runs for repeated queries; each query reads only new records. Thread-safe.

    Args:
        home: of the runs.
        store: of the runs.
    """

    def __init__(self, home: Home, store: RunStore) -> None:
        self._home, self._store = home, store
        self._lock = threading.Lock()
        self._accounts: OrderedDict[str, _CachedAccount] = OrderedDict()

    def of(self, run_id: str) -> RunAccount:
        """Compute the account of a run from its records, until its end or until now.

        Raises:
            InputError: no run or several runs match.
        """
        record = self._store.get(run_id)
        return self._cached(record.id).compute(record)

    def _cached(self, run_id: str) -> _CachedAccount:
        with self._lock:
            if run_id not in self._accounts:
                self._accounts[run_id] = _CachedAccount(self._home.run(run_id), self._store)
            self._accounts.move_to_end(run_id)  # evict the least recently used
            if len(self._accounts) > _MAX_CACHED_RUNS:
                self._accounts.popitem(last=False)
            return self._accounts[run_id]


class _CachedAccount:
    """Totals over the records of one run that have been read."""

    def __init__(self, folder: RunFolder, store: RunStore) -> None:
        self._folder, self._store = folder, store
        self._lock = threading.Lock()
        self._history: list[TransitionRecord] = []
        self._number = 0  # of the last transition
        self._spool, self._totals = SpoolReader(folder.spool), RunningTotals(folder.step_times)

    def compute(self, record: RunRecord) -> RunAccount:
        """Return the current account."""
        with self._lock:
            now = time.time()
            for number, transition in self._store.history_after(record.id, self._number):
                self._history.append(transition)
                self._number = number
            resources = stored_spec(self._folder).resources
            energy_from = record.facts.energy_from
            joules = self._spool.update().joules if energy_from else None
            spent = cost(worker_seconds(self._history, now), joules, energy_from, resources)
            return RunAccount(self._totals.goodput(_phase_intervals(record, self._history, now)), spent)


def account_of(home: Home, store: RunStore, run_id: str) -> RunAccount:
    """Compute the account of one run. See `RunAccountCache.of`."""
    return RunAccountCache(home, store).of(run_id)


def timeline_of(home: Home, store: RunStore, run_id: str) -> Timeline:
    """Return all intervals of a run's time, for a plot. It reads all time records of the run.

    Raises:
        InputError: no run or several runs match.
    """
    record = store.get(run_id)
    intervals = _phase_intervals(record, store.history(record.id), time.time())
    return account(intervals, read_iterations(home.run(record.id).step_times))


def _phase_intervals(record: RunRecord, history: list[TransitionRecord], now: float) -> list[PhaseInterval]:
    phases = [(at, state.phase, state.progress.generation) for at, _, state in history]
    return phase_intervals(record.created, phases, now)
