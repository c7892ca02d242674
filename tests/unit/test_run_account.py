"""Accounts of runs for repeated queries, and the energy for budgets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from drivetrain.accounting import run_account
from drivetrain.accounting.run_account import RunAccountCache, account_of, timeline_of
from drivetrain.coordinator.bookkeeping import Bookkeeping
from drivetrain.home import Home
from drivetrain.job.loading import load_job
from drivetrain.runs import store as store_module
from drivetrain.runs.states import (
    Allocation,
    Ended,
    Placing,
    Preparing,
    Progress,
    Queued,
    Ready,
    Starting,
    State,
    Training,
)
from drivetrain.runs.store import RunStore
from drivetrain.tracking.destination import Destination, UnavailableError
from drivetrain.tracking.mark import Mark
from drivetrain.tracking.spool import Spool
from drivetrain.tracking.tracker import Tracker
from drivetrain_workers.protocol.reasons import Reason
from drivetrain_workers.records.step_times import ITERATION

PLACE = Allocation((("node", 2),), 1000.0)
JOB = load_job("language-model", ["resources.price_per_hour=3"]).spec


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(run_account, "time", found)
    monkeypatch.setattr(store_module, "time", found)
    return found


@pytest.fixture
def home(tmp_path: Path, clock: Clock) -> Home:
    """Return a home with the run ``toy``, which was just submitted."""
    found = Home(tmp_path)
    folder = found.run("toy")
    folder.path.mkdir(parents=True)
    folder.step_times.mkdir()
    folder.job_resolved.write_text(JOB.model_dump_json())
    RunStore(found.database_url).create("toy", "f", Queued())
    return found


def in_generation(number: int) -> Progress:
    return Progress(generation=number)


def test_a_repeated_query_equals_a_new_account(home: Home, clock: Clock) -> None:
    store, spool, folder = RunStore(home.database_url), Spool(home.run("toy").spool), home.run("toy")
    accounts = RunAccountCache(home, store)
    life: list[State] = [
        Preparing(),
        Ready("/data"),
        Placing("/data", PLACE),
        Starting("/data", PLACE, progress=in_generation(1)),
        Training("/data", PLACE, progress=in_generation(1)),
        Starting("/data", PLACE, progress=in_generation(2)),
        Training("/data", PLACE, progress=in_generation(2)),
        Ended(Reason.CANCELLED, progress=in_generation(2)),
    ]
    step = 0
    for state in life:
        clock.now += 2.0
        store.save("toy", state, "test")
        if isinstance(state, Training):
            store.update_facts("toy", energy_from="nvml")
            for _ in range(3):
                step += 1
                clock.now += 5.0
                with (folder.step_times / f"{state.progress.generation:06d}.times").open("ab") as file:
                    file.write(a_turn(step, clock.now - 4.0))
                energy = {"gpu0/energy_joules": 3.6e5}
                spool.append({"op": "metrics", "series": "system/a", "step": step, "time_ms": 1, "values": energy})
                compare(accounts, home, store)
            step -= 1  # the next generation repeats one step
        clock.now += 1.0
        compare(accounts, home, store)
    spool.close()
    found = accounts.of("t")
    assert found.cost.energy_kwh == pytest.approx(0.6)
    assert found.goodput.seconds["recomputing"] > 0
    assert found.cost.dollars == pytest.approx(found.cost.worker_hours * 3)
    clock.now += 100
    assert accounts.of("toy") == found, "a run that has ended takes no more time"


def a_turn(step: int, began: float) -> bytes:
    return np.array([(step, began, 0.5, 2.0, 0.5, 0.0, 0.25)], ITERATION).tobytes()


def compare(accounts: RunAccountCache, home: Home, store: RunStore) -> None:
    again, new = accounts.of("toy"), account_of(home, store, "toy")
    assert again == new
    assert again.goodput.seconds == pytest.approx(timeline_of(home, store, "toy").goodput.seconds)


def _away() -> Destination:
    raise UnavailableError("away")


def test_energy_since_a_run_was_resumed(home: Home, clock: Clock) -> None:
    """A restarted coordinator knows the energy used since the resume."""
    store, folder = RunStore(home.database_url), home.run("toy")

    def energy() -> float:
        tracker = Tracker(Spool(folder.spool), _away)
        found = Bookkeeping(JOB, home, folder, tracker).energy_since_resumed(store.history("toy"))
        tracker.close()
        return found

    def train(step: int, joules: float) -> None:
        spool = Spool(folder.spool)
        values = {"gpu0/energy_joules": joules}
        spool.append({"op": "metrics", "series": "system/a", "step": step, "time_ms": 1, "values": values})
        spool.store_mark(Mark(spool.size()))
        spool.close()

    def begin() -> None:
        spool = Spool(folder.spool)
        spool.append({"op": "begin"})
        spool.store_mark(Mark(spool.size()))
        spool.close()

    assert energy() == 0
    begin()
    store.save("toy", Training("/data", PLACE), "test")
    train(1, 5.0)
    train(2, 7.0)
    assert energy() == 12.0
    store.save("toy", Ended(Reason.CANCELLED), "test")
    store.save("toy", Queued(), "resumed by the user")
    assert energy() == 0, "it has not begun again yet"
    begin()
    begin()  # the coordinator was restarted in between
    store.save("toy", Preparing(), "test")
    assert energy() == 0
    train(3, 1.5)
    assert energy() == 1.5
