"""A run's account: its time by class, and what it has cost."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import asdict, dataclass

from drivetrain_pipelines.storage.checksums import JsonObject
from drivetrain_workers.records.run_folder import RunFolder
from drivetrain_workers.records.step_times import read_iterations

from drivetrain.accounting.cost import Cost, cost, worker_seconds
from drivetrain.accounting.goodput import Goodput, Stay, Timeline, account, stays
from drivetrain.accounting.sums import RunSums
from drivetrain.home import Home
from drivetrain.job.spec import stored_spec
from drivetrain.runs.store import RunRecord, RunStore, TransitionRecord
from drivetrain.tracking.spool import SpoolReader

_MOST_BOOKS = 1000  # some tens of kilobytes each


@dataclass(frozen=True)
class Statement:
    """The account of one run, until it was drawn up."""

    goodput: Goodput
    cost: Cost

    def to_json(self) -> JsonObject:
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


class RunAccounts:
    """Accounts of runs, for a reader that asks again and again: what was read once is not read again.

    Safe to use from several threads.

    Args:
        home: of the runs.
        store: of the runs.
    """

    def __init__(self, home: Home, store: RunStore) -> None:
        self._home, self._store = home, store
        self._lock = threading.Lock()
        self._books: OrderedDict[str, _Book] = OrderedDict()

    def of(self, run_id: str) -> Statement:
        """Draw up the account of a run from its records: until its end, or until now.

        Raises:
            InputError: there is no such run, or several.
        """
        record = self._store.get(run_id)
        return self._book(record.id).draw_up(record)

    def _book(self, run_id: str) -> _Book:
        with self._lock:
            if run_id not in self._books:
                self._books[run_id] = _Book(self._home.run(run_id), self._store)
            self._books.move_to_end(run_id)  # the one that was not asked about for longest goes first
            if len(self._books) > _MOST_BOOKS:
                self._books.popitem(last=False)
            return self._books[run_id]


class _Book:
    """What was read of one run, in sums."""

    def __init__(self, folder: RunFolder, store: RunStore) -> None:
        self._folder, self._store = folder, store
        self._lock = threading.Lock()
        self._history: list[TransitionRecord] = []
        self._number = 0  # of the last transition
        self._spool, self._sums = SpoolReader(folder.spool), RunSums(folder.step_times)

    def draw_up(self, record: RunRecord) -> Statement:
        """Return the account as it is now."""
        with self._lock:
            now = time.time()
            for number, transition in self._store.history_after(record.id, self._number):
                self._history.append(transition)
                self._number = number
            resources = stored_spec(self._folder).resources
            energy_from = record.facts.energy_from
            joules = self._spool.update().joules if energy_from else None
            spent = cost(worker_seconds(self._history, now), joules, energy_from, resources)
            return Statement(self._sums.goodput(_stays(record, self._history, now)), spent)


def account_of(home: Home, store: RunStore, run_id: str) -> Statement:
    """Draw up the account of one run, once. See `RunAccounts.of`."""
    return RunAccounts(home, store).of(run_id)


def timeline_of(home: Home, store: RunStore, run_id: str) -> Timeline:
    """Return every stretch of a run's time, for a picture. It reads all that the run has recorded of its time.

    Raises:
        InputError: there is no such run, or several.
    """
    record = store.get(run_id)
    found = _stays(record, store.history(record.id), time.time())
    return account(found, read_iterations(home.run(record.id).step_times))


def _stays(record: RunRecord, history: list[TransitionRecord], now: float) -> list[Stay]:
    phases = [(at, state.phase, state.progress.generation) for at, _, state in history]
    return stays(record.created, phases, now)
