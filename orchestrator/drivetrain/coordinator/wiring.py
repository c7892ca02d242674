"""Construction of all parts. The only module that imports all of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from logging.handlers import RotatingFileHandler
from pathlib import PurePosixPath

from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.storage.paths import sqlite_file
from drivetrain_workers.protocol.processes import lower_priority
from filelock import FileLock
from tenacity import retry, retry_if_exception_type, wait_fixed

from drivetrain.cluster.autoscaler import Autoscaler
from drivetrain.cluster.gang import RayGang
from drivetrain.cluster.nodes import usable_nodes
from drivetrain.coordinator.actions import Actions, tracking_facts
from drivetrain.coordinator.agent_events import AgentEvents
from drivetrain.coordinator.bookkeeping import Bookkeeping
from drivetrain.coordinator.conclusion import Conclusion
from drivetrain.coordinator.coordinator import Coordinator, hold_owner_lock
from drivetrain.coordinator.gang_request import check_request, gang_request, waiting_since
from drivetrain.coordinator.late_tracking import LateTracking, Sent
from drivetrain.coordinator.live_run import LiveRun
from drivetrain.coordinator.observer import Observer
from drivetrain.coordinator.preparation import Preparation
from drivetrain.coordinator.run_loop import RunLoop
from drivetrain.coordinator.scheduler import Scheduler, SchedulerHandle
from drivetrain.home import Home
from drivetrain.job.provenance import load_git_state
from drivetrain.job.snapshots import stored_names
from drivetrain.job.spec import JobSpec, flatten, stored_spec
from drivetrain.runs.facts import mlflow_identity
from drivetrain.runs.store import RunRecord, RunStore
from drivetrain.scheduling.model import Node, Request
from drivetrain.scheduling.rules import ReloadingRules
from drivetrain.tracking.destination import Destination
from drivetrain.tracking.mark import Mark
from drivetrain.tracking.spool import Spool
from drivetrain.tracking.tracker import Tracker

_LOG_BYTES = 10 << 20
_LATE_TIMEOUT_S = 20.0  # of one attempt; the next one continues where it ended


class RayCoordinator(Coordinator):
    """The coordinator as Ray constructs it, from arguments that survive a restart.

    Args:
        home: of the head node.
        session: see `Coordinator`.
    """

    def __init__(self, home: Home, session: str) -> None:
        lower_priority()
        log = RotatingFileHandler(home.coordinator_log, maxBytes=_LOG_BYTES, backupCount=1)
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", handlers=[log], force=True)
        # Ray does not restart an actor whose constructor raises; its client has already opened the database.
        open_store = retry(retry=retry_if_exception_type(InputError), wait=wait_fixed(2.0))(RunStore)
        store = open_store(home.database_url)

        def spec_of(run_id: str) -> JobSpec:
            return _spec_of(home, run_id)

        rules = ReloadingRules(home.scheduling_rules)

        def all_nodes() -> list[Node]:
            nodes = usable_nodes()
            return [*nodes, *rules().possible_nodes(nodes)]

        scheduler = Scheduler(rules, usable_nodes, store, provision=Autoscaler())

        def request_of(run_id: str) -> Request:
            record = store.get(run_id)
            since = waiting_since(record.created, store.history(run_id))
            return gang_request(record, since, spec_of(run_id), rules())

        def build(run_id: str) -> RunLoop:
            return _build_loop(home, store, spec_of(run_id), run_id, scheduler.handle_of(request_of(run_id)))

        def check(run_id: str) -> None:
            if store.get(run_id).facts.gpus_per_worker is None:
                store.update_facts(run_id, gpus_per_worker=_gpus_per_worker(spec_of(run_id), all_nodes()))
            check_request(request_of(run_id), all_nodes(), rules())

        def own(run_id: str) -> FileLock:
            return hold_owner_lock(run_id, home.run(run_id).path)

        def send(record: RunRecord) -> Sent:
            return send_rest(home, store, record, _LATE_TIMEOUT_S)

        self._late = LateTracking(store, send)
        super().__init__(store, session, build, check, own, scheduler.status)
        scheduler.start()  # after all existing allocations are registered
        self._late.start()

    def adopt(self, run_id: str, new: bool = False) -> None:
        """See `Coordinator.adopt`."""
        self._late.drop(run_id)
        super().adopt(run_id, new)
        self._late.add(run_id)


def _build_loop(home: Home, store: RunStore, spec: JobSpec, run_id: str, scheduler: SchedulerHandle) -> RunLoop:
    """Build the loop of one run with all its parts."""
    folder, record, gpus = home.run(run_id), store.get(run_id), int(scheduler.request.gpus)
    tracker = tracker_of(home, record)
    if not tracker.totals.begun:
        _describe(tracker, spec, home, run_id, record.user)
    books = Bookkeeping(spec, home, folder, tracker)
    live = LiveRun(record, store, books.energy_since_resumed(store.history(run_id)))
    live.view.eval_loss, live.view.metrics = tracker.totals.evaluation()  # from before a restart
    agents = AgentEvents(live, Observer(live, tracker, folder.ledger), scheduler)
    gang = RayGang(run_id, spec.resources.cpus_per_worker, gpus, folder)
    preparation = Preparation(spec, home, folder, tracker, gpus)
    conclusion = Conclusion(spec, folder, tracker)
    actions = Actions(live, store, gang, agents, scheduler, tracker, preparation, conclusion, books)
    return RunLoop(live, actions, scheduler, tracker, partial(books.overspent, live.history))


def tracker_of(home: Home, record: RunRecord, remake: bool = False) -> Tracker:
    """Create the tracker of a run, which ships its records; only one may exist at a time.

    Args:
        remake: whether a run that was deleted on the tracking server is logged again, and records that it did not
            accept are sent again.
    """
    spec = _spec_of(home, record.id)
    experiment = spec.tracking.experiment or spec.name
    spool = Spool(home.run(record.id).spool)
    known = spool.mark.identity or mlflow_identity(record.facts)
    if remake and spool.mark.refused:
        spool.store_mark(Mark(identity=known))
    elif spool.mark.identity != known:  # an earlier version stored only the offset
        spool.store_mark(replace(spool.mark, identity=known))
    return Tracker(spool, lambda: _connect(home, record, experiment, known, remake))


def send_rest(home: Home, store: RunStore, record: RunRecord, timeout_s: float, remake: bool = False) -> Sent:
    """Send to the tracking server what it has not received of a run that has ended. Args: see `tracker_of`.

    Raises:
        Timeout: another process does the same.
    """
    with FileLock(home.run(record.id).path / "sync.lock", timeout=0):
        tracker = tracker_of(home, record, remake)
        try:
            tracked = tracker.flush(timeout_s)
        finally:
            tracker.close()
    known = {"tracked": tracked, **tracking_facts(tracker)}
    if record.facts.updated(**known) != record.facts:
        store.update_facts(record.id, **known)
    return Sent(tracked, tracker.deleted)


def _spec_of(home: Home, run_id: str) -> JobSpec:
    return stored_spec(home.run(run_id))


def _gpus_per_worker(spec: JobSpec, nodes: list[Node]) -> int:
    """Return the GPUs per worker, fixed at the start: a run must not continue on CPUs if GPU nodes leave."""
    wanted = spec.resources.gpus_per_worker
    return wanted if wanted != "auto" else int(any(node.gpus for node in nodes))


def _connect(home: Home, record: RunRecord, experiment: str, known: Mapping[str, str], remake: bool) -> Destination:
    # Here: importing mlflow takes seconds; this function runs in a thread.
    from drivetrain.tracking.embedded import make_database
    from drivetrain.tracking.mlflow_client import MlflowRun
    from drivetrain.tracking.mlflow_lookup import Wanted

    uri, artifacts = record.facts.mlflow_uri, None
    if database := sqlite_file(uri):
        artifacts = home.mlflow_artifacts
        make_database(database, artifacts)
    known_id = known.get("mlflow_run_id", "")
    return MlflowRun(uri, Wanted(experiment, artifacts, record.id, record.user, record.created, known_id, remake))


def _describe(tracker: Tracker, spec: JobSpec, home: Home, run_id: str, user: str) -> None:
    """Log parameters, tags and files of a run before its start."""
    folder = home.run(run_id)
    tracker.params(flatten(spec.model_dump(mode="json")))
    code = folder.code_version.read_text()
    tracker.tags(user=user, code_version=code, seed=spec.seed, home=os.fspath(home.path))
    tracker.artifact(folder.job_written)
    tracker.artifact(folder.job_resolved)
    tracker.artifact(folder.environment)
    if (git := load_git_state(folder)).commit:
        tracker.tags(git_commit=git.commit, git_dirty=bool(git.uncommitted))
    if git.uncommitted:
        tracker.artifact(folder.uncommitted)
    for name in filter(str.isprintable, stored_names(folder)):  # others are no names of artifacts
        tracker.artifact(folder.code / name, f"code/{PurePosixPath(name).parent}".removesuffix("/."))
