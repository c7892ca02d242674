"""Time and memory of the control plane's bookkeeping for longer and more runs: bounded operations stay constant.

Every operation runs in a separate process that was forked from this one, so that its processor time and the growth of
its peak memory belong to the operation. "again" is the cost of a repeated request, after one more step.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import numpy as np
from drivetrain.accounting.run_account import RunAccountCache, account_of
from drivetrain.api.session import Session
from drivetrain.coordinator.scheduler import Scheduler
from drivetrain.coordinator.wiring import _build_loop
from drivetrain.database.engine import open_database
from drivetrain.database.tables import Run, Transition
from drivetrain.errors import NotFoundError
from drivetrain.home import Home
from drivetrain.job.loading import load_job
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
    to_record,
)
from drivetrain.runs.store import RunStore
from drivetrain.runs.view import RunView
from drivetrain.scheduling.model import Request
from drivetrain.scheduling.rules import Rules
from drivetrain.scheduling.status import ClusterStatus
from drivetrain.server.access import Tokens
from drivetrain.server.dependencies import Parts
from drivetrain.server.metrics import registry
from drivetrain.tracking.destination import Destination
from drivetrain.tracking.mark import Mark
from drivetrain.tracking.spool import Spool
from drivetrain.tracking.totals import Record
from drivetrain.tracking.tracker import Tracker
from drivetrain_workers.protocol.reasons import Reason
from drivetrain_workers.records.step_times import ITERATION, PARTS
from prometheus_client import generate_latest
from sqlalchemy.orm import Session as Transaction

from tests.benchmarks import growth_ranks
from tests.benchmarks.report import report

_STEPS, _RUNS, _RESTARTS = (1_000, 10_000, 100_000), (1_000, 10_000), (100, 1_000)
_REPEATS = 5
_UNENDED = 3
_SPREAD = 0x9E3779  # makes ids as different as random ones
_LIVE = "live-0"  # the run that trains, everywhere
_STEP_S, _NODE_EVERY, _EVAL_EVERY = 0.1, 20, 100
_SUMMARY = {"released": True, "reason": "completed", "tracked": True, "text": "x" * 2000}  # facts have some size


@dataclass(frozen=True)
class Row:
    """The cost of an operation.

    Attributes:
        size: size of its input, such as ``10,000 steps``.
        seconds: processor time, the minimum of several runs, which is least affected by other load.
        bytes: growth of a process's peak memory, at most.
    """

    operation: str
    size: str
    seconds: float
    bytes: int


def main() -> None:
    """Measure all subjects and reads of ranks, or the named subjects."""
    subjects: dict[str, Callable[[Home], Iterator[Row]]] = {"steps": steps, "runs": runs, "restarts": restarts}
    rows: list[Row] = []
    for name in sys.argv[1:] or subjects:
        with tempfile.TemporaryDirectory() as folder:
            for row in subjects[name](Home(Path(folder))):
                print(f"{row.operation}, {row.size}: {1000 * row.seconds:.2f} ms", flush=True)
                rows.append(row)
    smallest: dict[str, Row] = {}
    for row in rows:
        smallest.setdefault(row.operation, row)
    shown = [
        [row.operation, row.size, f"{1000 * row.seconds:.2f}", f"{row.bytes / 1e6:.1f}", f"{_ratio(row, smallest):.1f}"]
        for row in sorted(rows, key=lambda row: list(smallest).index(row.operation))
    ]
    columns = ["operation", "size", "CPU ms", "MB", "times the smallest"]
    report("growth", columns, shown, {"rows": [vars(row) for row in rows]})
    if not sys.argv[1:]:
        growth_ranks.main()


def _ratio(row: Row, smallest: dict[str, Row]) -> float:
    return row.seconds / smallest[row.operation].seconds


# Subjects -----------------------------------------------------------------------------------------------------------


def steps(home: Home) -> Iterator[Row]:
    """Measure a live run, by the number of its steps."""
    for count in _STEPS:
        here = Home(home.path / str(count))
        store, spool = make_long_run(here, count)
        size = f"{count:,} steps"
        yield measure("open spool and tracker", size, lambda: open_tracker(here))  # noqa: B023  # it is called at once
        yield measure("adopt a run", size, lambda: adopt(here, store))  # noqa: B023
        yield measure("account of a run", size, lambda: account_of(here, store, _LIVE))  # noqa: B023
        accounts, scrape = RunAccountCache(here, store), metrics_of(here, store)
        accounts.of(_LIVE)
        scrape()
        log_step(spool, count + 1)
        yield measure("account of a run, again", size, lambda: accounts.of(_LIVE))  # noqa: B023
        yield measure("/metrics, again", size, scrape)
        spool.close()


def runs(home: Home) -> Iterator[Row]:
    """Measure a home, by the number of its runs."""
    for count in _RUNS:
        here = Home(home.path / str(count))
        store = make_many_runs(here, count)
        middle = store.page(count // 2)[-1]
        operations: dict[str, Callable[[], Any]] = {
            "runs that have not ended": store.unended,
            "a run by its id": lambda: store.get(middle.id),  # noqa: B023
            "a run by a prefix": lambda: store.get(middle.id[:-1]),  # noqa: B023
            "a missing run": lambda: missing(store),  # noqa: B023
            "first page of runs": store.page,
            "page of runs in the middle": lambda: store.page(50, middle.id),  # noqa: B023
            "page of a user's runs": lambda: store.page(user="user-3"),  # noqa: B023
            "newest run by fingerprint": lambda: next(store.iterate(fingerprint=middle.fingerprint)),  # noqa: B023
            "datasets in use": store.datasets,
            "/metrics, first": metrics_of(here, store),
        }
        for operation, work in operations.items():
            yield measure(operation, f"{count:,} runs", work)


def restarts(home: Home) -> Iterator[Row]:
    """Measure a live run, by the number of its failures."""
    for count in _RESTARTS:
        here = Home(home.path / str(count))
        store, spool = make_long_run(here, 1000)
        make_history(store, count)
        accounts = RunAccountCache(here, store)
        accounts.of(_LIVE)
        size = f"{count:,} restarts"
        yield measure("history of a run", size, lambda: store.history(_LIVE))  # noqa: B023
        yield measure("account of a run that fails, again", size, lambda: accounts.of(_LIVE))  # noqa: B023
        spool.close()


# Operations ---------------------------------------------------------------------------------------------------------


def open_tracker(home: Home) -> None:
    """Open the logging of a run as a coordinator does."""
    tracker = Tracker(Spool(home.run(_LIVE).spool), _nowhere)
    assert tracker.newest_step("train")
    assert tracker.totals.begun
    tracker.close()


def adopt(home: Home, store: RunStore) -> None:
    """Build all objects that manage a run, as a restarted coordinator does; none of them is started."""
    spec = load_job("language-model").spec
    request = Request(_LIVE, "user-0", "default", 0, 0.0, 1, 1, 1.0, 0, 1e9, True)
    scheduler = Scheduler(Rules, list, store)
    loop = _build_loop(home, store, spec, _LIVE, scheduler.handle_of(request))
    assert not loop.ended


def metrics_of(home: Home, store: RunStore) -> Callable[[], bytes]:
    """Return the function that renders ``/metrics``; without the coordinator, which answers from memory."""
    parts = Parts(
        cast("Session", _NoCoordinator()), store, Tokens(home.database_url), home, RunAccountCache(home, store)
    )
    collector = registry(parts)
    return lambda: generate_latest(collector)


def missing(store: RunStore) -> None:
    """Look up a run that does not exist."""
    try:
        store.get("nothing")
    except NotFoundError:
        return
    raise AssertionError


class _NoCoordinator:
    def cluster(self) -> ClusterStatus:
        return ClusterStatus((), (), {})

    def view(self, run_id: str) -> RunView:
        return RunView(run_id, step=1, steps=2)


class _Nowhere:
    identity: dict[str, str] = {}

    def ship(self, records: list[Record]) -> None:
        """Accept everything."""


def _nowhere() -> Destination:
    return _Nowhere()


def measure(operation: str, size: str, work: Callable[[], Any]) -> Row:
    """Measure the cost of an operation."""
    found = [_in_a_process(work) for _ in range(_REPEATS)]
    return Row(operation, size, min(seconds for seconds, _ in found), max(grown for _, grown in found))


def _in_a_process(work: Callable[[], Any]) -> tuple[float, int]:
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe(duplex=False)
    process = fork.Process(target=_run, args=(work, there))
    process.start()
    there.close()
    seconds, grown = here.recv()
    process.join()
    return seconds, grown


def _run(work: Callable[[], Any], result: Connection) -> None:
    before, began = _peak_bytes(), time.process_time()
    work()
    result.send((time.process_time() - began, _peak_bytes() - before))


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# Inputs of the measurements ------------------------------------------------------------------------------------------


def make_long_run(home: Home, count: int) -> tuple[RunStore, Spool]:
    """Create a run that trains, in its second generation, after ``count`` steps; all of them were shipped."""
    store, folder, began = _open(home), home.run(_LIVE), time.time() - _STEP_S * count - 100
    folder.code.mkdir(parents=True)
    spec = load_job("language-model").spec
    folder.job_resolved.write_text(spec.model_dump_json())
    folder.job_written.write_text("")
    (folder.path / "code_version").write_text("0")
    store.create(_LIVE, "fingerprint", Queued(), "user-0", gpus_per_worker=0, energy_from="nvml", unigram_entropy=None)
    allocation = Allocation((("node", 1),), began)
    progress = Progress(generation=1, step=count // 2)
    for state in (
        Preparing(),
        Ready("/data"),
        Placing("/data", allocation),
        Starting("/data", allocation, progress=Progress(generation=1)),
        Training("/data", allocation, progress=progress),
        Starting("/data", allocation, progress=Progress(generation=2, step=count // 2, restarts=1)),
        Training("/data", allocation, progress=Progress(generation=2, step=count, restarts=1)),
    ):
        store.save(_LIVE, state, "benchmark")
    spool = Spool(folder.spool)
    spool.append({"op": "begin"})
    for step in range(1, count + 1):
        log_step(spool, step)
    spool.store_mark(Mark(spool.size()))
    folder.step_times.mkdir()
    half = count // 2
    _write_turns(folder.step_times / "000001.times", range(1, half + 1), began)
    _write_turns(folder.step_times / "000002.times", range(half - 10, count + 1), time.time() - 1e-4 * count)
    return store, spool


def log_step(spool: Spool, step: int) -> None:
    """Write the average log records of a step."""
    at = int(1000 * time.time())
    names = ("loss", "learning_rate", "gradient_norm", "tokens_per_s", "data_wait_share", "step_s", "world_size")
    values = dict.fromkeys(names, 1.2345678901234 + step)
    spool.append({"op": "metrics", "series": "train", "step": step, "time_ms": at, "values": values})
    if step % _NODE_EVERY == 0:
        node = {f"gpu{number}/{name}": 1.5 for number in range(8) for name in ("utilization", "memory_bytes")}
        energy = {f"gpu{number}/energy_joules": 70.25 for number in range(8)}
        record = {"op": "metrics", "series": "system/node", "step": step, "time_ms": at, "values": node | energy}
        spool.append(record)
    if step % _EVAL_EVERY == 0:
        spool.append({"op": "metrics", "series": "eval", "step": step, "time_ms": at, "values": {"eval_loss": 2.5}})


def _write_turns(path: Path, numbers: range, began: float) -> None:
    turns = np.zeros(len(numbers), ITERATION)
    turns["step"] = numbers
    turns["began"] = began + 1e-4 * np.arange(len(numbers))
    for part in PARTS:
        turns[part] = 1e-5
    path.write_bytes(turns.tobytes())


def make_many_runs(home: Home, count: int) -> RunStore:
    """Create a home with this many runs: all but a few have ended."""
    store, began = _open(home), time.time() - 100 * count
    with Transaction(open_database(home.database_url)) as session, session.begin():
        for number in range(count):
            session.add_all(_rows(number, began + 100 * number, live=number >= count - _UNENDED))
    for record in store.unended():
        folder = home.run(record.id)
        folder.path.mkdir(parents=True)
        folder.job_resolved.write_text(load_job("language-model").spec.model_dump_json())
    return store


def _rows(number: int, created: float, live: bool) -> Iterator[Run | Transition]:
    run_id, allocation = f"language-model-{number * _SPREAD % (1 << 24):06x}", Allocation((("node", 1),), created)
    states: list[State] = [Preparing(), Ready("/data"), Placing("/data", allocation), Starting("/data", allocation)]
    states += [Training("/data", allocation)] + ([] if live else [Ended(Reason.COMPLETED)])
    for state in states:
        yield Transition(run_id=run_id, time=created, event="benchmark", state=to_record(state))
    yield Run(
        id=run_id,
        fingerprint=f"fingerprint-{number % 100}",
        created=created,
        session="session",
        state=to_record(states[-1]),
        facts={"dataset": f"/data/{number % 20}"} | ({} if live else _SUMMARY),
        user=f"user-{number % 10}",
        phase=states[-1].phase,
        ended=not live,
        dataset=f"/data/{number % 20}",
    )


def make_history(store: RunStore, count: int) -> None:
    """Make the live run fail this many times."""
    allocation = Allocation((("node", 1),), 0.0)
    with Transaction(store._engine) as session, session.begin():
        for number in range(count):
            progress = Progress(generation=3 + number, restarts=2 + number)
            for state in (
                Starting("/data", allocation, progress=progress),
                Training("/data", allocation, progress=progress),
            ):
                session.add(Transition(run_id=_LIVE, time=time.time(), event="benchmark", state=to_record(state)))


def _open(home: Home) -> RunStore:
    home.path.mkdir()
    return RunStore(home.database_url)


if __name__ == "__main__":
    main()
