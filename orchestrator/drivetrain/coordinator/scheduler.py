"""The scheduler: tables of queued and allocated runs, and passes of the policy over them.

The tables are rebuilt from the runs' records when the coordinator starts; nothing in them is durable.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from drivetrain.runs import events as ev
from drivetrain.runs.states import Allocation
from drivetrain.scheduling.model import Admit, AllocatedGang, Node, Request, workers_of
from drivetrain.scheduling.policy import schedule
from drivetrain.scheduling.priority import Capacity, FairShares, UsageMeter, by_priority
from drivetrain.scheduling.quarantine import Quarantine
from drivetrain.scheduling.rules import Rules
from drivetrain.scheduling.status import ClusterStatus, NodeStatus, QueueEntry

_log = logging.getLogger(__name__)
_POLL_INTERVAL_S = 2.0  # there is no notification of new and lost nodes
_USAGE_SAVE_INTERVAL_S = 60.0

Send = Callable[[ev.Event], None]


class UsageStore(Protocol):
    """The part of `drivetrain.runs.store.RunStore` that the scheduler uses."""

    def usage(self) -> tuple[dict[str, float], float]:
        """Return the shares by user, and the time of their measurement."""

    def save_usage(self, shares: Mapping[str, float], now: float) -> None:
        """Store the shares."""


class Scheduler:
    """Runs a pass after each change of its tables, and every few seconds.

    Args:
        rules: returns the rules; called before each pass.
        nodes: returns the usable nodes.
        store: stores the usage by user.
        clock: returns the time in seconds since the epoch.
        provision: receives all gangs that run or lack resources, if the rules have node pools.
    """

    def __init__(
        self,
        rules: Callable[[], Rules],
        nodes: Callable[[], list[Node]],
        store: UsageStore,
        clock: Callable[[], float] = time.time,
        provision: Callable[[list[Request]], None] | None = None,
    ) -> None:
        self._rules, self._nodes, self._store, self.clock = rules, nodes, store, clock
        self._provision = provision or _ignore
        self._changed = threading.Condition()
        self._dirty = True
        self._to_prepare: dict[str, SchedulerHandle] = {}
        self._preparing: set[str] = set()
        self._waiting: dict[str, SchedulerHandle] = {}
        self._allocated: dict[str, tuple[SchedulerHandle, AllocatedGang]] = {}
        usage, at = store.usage()
        self._quarantine = Quarantine()
        self._meter = UsageMeter(at, usage)
        self._remembered = at

    def start(self) -> None:
        """Start the passes in a thread."""
        threading.Thread(target=self._run, name="scheduler", daemon=True).start()

    def handle_of(self, request: Request) -> SchedulerHandle:
        """Return a run's interface to the scheduler."""
        return SchedulerHandle(self, request)

    def status(self) -> ClusterStatus:
        """Return the nodes with their runs, and the queue, with the next run first."""
        now, nodes = self.clock(), self._nodes()
        with self._changed:
            gangs = [gang for _, gang in self._allocated.values()]
            queue = [
                QueueEntry(request, what)
                for what, table in (("an allocation", self._waiting), ("data preparation", self._to_prepare))
                for request in self._by_priority(table)
            ]
            status = tuple(
                _node_status(node, gangs, self._quarantine.quarantined_until(node.id, now)) for node in nodes
            )
            return ClusterStatus(status, tuple(queue), dict(self._meter.usage))

    def update(self, handle: SchedulerHandle, **change: Any) -> None:
        """Move a run to another table, or remove it from all tables.

        Args:
            handle: of the run.
            change: ``to_prepare``, ``preparing`` or ``waiting`` (True), ``allocated`` (AllocatedGang), or nothing.
        """
        run = handle.request.run
        with self._changed:
            self._to_prepare.pop(run, None)
            self._waiting.pop(run, None)
            self._allocated.pop(run, None)
            self._preparing.discard(run)
            if change.get("to_prepare"):
                self._to_prepare[run] = handle
            elif change.get("preparing"):
                self._preparing.add(run)
            elif change.get("waiting"):
                self._waiting[run] = handle
            elif gang := change.get("allocated"):
                self._allocated[run] = (handle, gang)
            self._dirty = True
            self._changed.notify_all()

    def report_node_failure(self, node: str) -> None:
        """Record a failure of a node."""
        with self._changed:
            if self._quarantine.report_node_failure(node, self.clock(), self._rules()):
                _log.warning("node %s is quarantined", node)

    def update_expected_end(self, handle: SchedulerHandle, at: float) -> None:
        """Update the expected end of a run's allocation."""
        with self._changed:
            if found := self._allocated.get(handle.request.run):
                known = replace(found[1], request=handle.request, expected_end=at, steady=True)
                self._allocated[handle.request.run] = (handle, known)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._dirty, _POLL_INTERVAL_S)
                self._dirty = False
            try:
                self.run_pass()
            except Exception:  # the next pass may succeed; running gangs are not affected
                _log.exception("a scheduling pass failed")

    def run_pass(self) -> None:
        """Run one pass, and notify the runs of its decisions."""
        rules, nodes, now = self._rules(), self._nodes(), self.clock()
        with self._changed:
            self._measure(now, Capacity(nodes), rules.half_life_s)
            self._begin_preparations(rules)
            gangs = [gang for _, gang in self._allocated.values()]
            requests = [handle.request for handle in self._waiting.values()]
            nodes = self._quarantine.usable(nodes, requests, now)
            decision = schedule(now, nodes, gangs, requests, self._meter.usage, rules)
            for run, why in decision.waiting.items():
                self._waiting[run].show_waiting(why)
            for action in decision.actions:
                _log.info("%s", action)
                if isinstance(action, Admit):
                    handle = self._waiting.pop(action.run)
                    allocation = Allocation(action.placement, now, action.level)
                    self._allocated[action.run] = (handle, handle.allocated_gang(allocation))
                    handle.send(ev.AllocationGranted(allocation))
                else:
                    handle, gang = self._allocated[action.run]
                    self._allocated[action.run] = (handle, replace(gang, leaving=True))
                    handle.send(ev.PreemptionRequested(action.why))
            demand = [replace(h.request, workers=h.workers) for _, h in self._allocated.values()] + decision.short
        if rules.pools:
            self._provision(demand)

    def _measure(self, now: float, capacity: Capacity, half_life_s: float) -> None:
        shares: dict[str, float] = defaultdict(float)
        for _, gang in self._allocated.values():
            shares[gang.request.user] += capacity.share(gang.request, gang.workers)
        self._meter.advance(now, shares, half_life_s)
        if shares and now - self._remembered > _USAGE_SAVE_INTERVAL_S:
            self._remembered = now
            self._store.save_usage(self._meter.usage, now)

    def _begin_preparations(self, rules: Rules) -> None:
        for request in self._by_priority(self._to_prepare):
            if len(self._preparing) >= rules.max_preparing:
                self._to_prepare[request.run].show_waiting("waiting for other runs to prepare their data")
                continue
            handle = self._to_prepare.pop(request.run)
            self._preparing.add(request.run)
            handle.send(ev.Admitted())

    def _by_priority(self, table: dict[str, SchedulerHandle]) -> list[Request]:
        rules, requests = self._rules(), [handle.request for handle in table.values()]
        return list(by_priority(self.clock(), requests, FairShares(self._meter.usage, rules), rules))


class SchedulerHandle:
    """The interface between one run and the scheduler.

    Args:
        scheduler: of the cluster.
        request: of the run.
    """

    def __init__(self, scheduler: Scheduler, request: Request) -> None:
        self._scheduler, self.request = scheduler, request
        self._workers = request.workers
        self.send: Send = _ignore
        self.show_waiting: Callable[[str], None] = _ignore

    def connect(self, send: Send, show_waiting: Callable[[str], None]) -> None:
        """Set the receivers of decisions and of waiting reasons."""
        self.send, self.show_waiting = send, show_waiting

    def request_preparation(self) -> None:
        """Queue the run for data preparation."""
        self._scheduler.update(self, to_prepare=True)

    def mark_preparing(self) -> None:
        """Register a run that was preparing data before this scheduler started."""
        self._scheduler.update(self, preparing=True)

    def request_allocation(self, left_s: float | None, since: float) -> None:
        """Queue the run for an allocation.

        Args:
            left_s: expected remaining run time, if known.
            since: see `Request.since`.
        """
        self.request = replace(self.request, since=since)
        if left_s is not None:
            self.request = replace(self.request, expected_s=left_s * self._workers / self.request.workers)
        self._scheduler.update(self, waiting=True)

    def restore_allocation(self, allocation: Allocation, leaving: bool) -> None:
        """Register a run that had an allocation before this scheduler started."""
        self._scheduler.update(self, allocated=replace(self.allocated_gang(allocation), leaving=leaving))

    def update_expected_end(self, in_s: float | None, restart_s: float | None) -> None:
        """Update the expected remaining time of the run, and the duration of its last start, where known."""
        if restart_s is not None:
            self.request = replace(self.request, restart_s=max(0.0, restart_s))
        if in_s is not None:
            self._scheduler.update_expected_end(self, self._scheduler.clock() + in_s)

    def report_node_failure(self, node: str) -> None:
        """Report a failure of a rank or an agent on a node that the job did not cause."""
        self._scheduler.report_node_failure(node)

    def release(self) -> None:
        """Remove the run from all tables."""
        self._scheduler.update(self)

    def allocated_gang(self, allocation: Allocation) -> AllocatedGang:
        """Return the table entry for an allocation."""
        self._workers = workers_of(allocation.placement) or self.request.workers
        end = allocation.since + self.request.expected_s * self.request.workers / self._workers
        return AllocatedGang(self.request, allocation.placement, allocation.since, allocation.level, end)


def _ignore(_: object) -> None:
    """Ignore a notification: no receiver is connected."""


def _node_status(node: Node, gangs: list[AllocatedGang], quarantined_until: float | None) -> NodeStatus:
    here = [(gang, ranks) for gang in gangs for name, ranks in gang.placement if name == node.id]
    return NodeStatus(
        node.id,
        node.address,
        node.cpus,
        node.gpus,
        node.draining,
        quarantined_until,
        ranks={gang.request.run: ranks for gang, ranks in here},
        cpus_used=sum(ranks * gang.request.cpus for gang, ranks in here),
        gpus_used=sum(ranks * gang.request.gpus for gang, ranks in here),
    )
