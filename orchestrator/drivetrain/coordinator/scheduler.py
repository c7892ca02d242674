"""Gives runs their places: keeps the book of who wants and who holds what, and runs passes of the policy over it.

The book is rebuilt from the runs' records when the coordinator starts; nothing in it is durable.
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
_POLL_INTERVAL_S = 2.0  # nodes come and go without a word
_USAGE_SAVE_INTERVAL_S = 60.0

Send = Callable[[ev.Event], None]


class UsageStore(Protocol):
    """What the scheduler needs of `drivetrain.runs.store.RunStore`."""

    def usage(self) -> tuple[dict[str, float], float]:
        """Shares by user, and when they were measured."""

    def save_usage(self, shares: Mapping[str, float], now: float) -> None:
        """Keep them."""


class Scheduler:
    """Passes over the book when it has changed, and every few seconds, once it is started.

    Args:
        rules: read anew before each pass.
        nodes: that can be used now.
        store: remembers who has used how much.
        clock: seconds since the epoch.
        provision: is told of all demand that run or wait for free, where the rules have pools to draw nodes from.
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
        """Pass over the book in a thread from now on."""
        threading.Thread(target=self._run, name="scheduler", daemon=True).start()

    def handle_of(self, request: Request) -> SchedulerHandle:
        """A run's line to the scheduler."""
        return SchedulerHandle(self, request)

    def status(self) -> ClusterStatus:
        """Return the nodes with the runs that have them, and every run that waits, the next first."""
        now, nodes = self.clock(), self._nodes()
        with self._changed:
            held = [gang for _, gang in self._allocated.values()]
            queue = [
                QueueEntry(request, what)
                for what, book in (("a place", self._waiting), ("its turn to prepare data", self._to_prepare))
                for request in self._by_priority(book)
            ]
            status = tuple(_node_status(node, held, self._quarantine.quarantined_until(node.id, now)) for node in nodes)
            return ClusterStatus(status, tuple(queue), dict(self._meter.usage))

    def update(self, handle: SchedulerHandle, **change: Any) -> None:
        """Enter a change into the book: a run is in one of its lists, or in none.

        Args:
            change: ``prepares``, ``preparing``, ``waits`` (True), ``holds`` (a AllocatedGang), or nothing.
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
        """Blame a failure on a node."""
        with self._changed:
            if self._quarantine.report_node_failure(node, self.clock(), self._rules()):
                _log.warning("node %s is in quarantine", node)

    def update_expected_end(self, handle: SchedulerHandle, at: float) -> None:
        """Note when a run will give its place back."""
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
            except Exception:  # the next pass may do better; runs that train are not concerned
                _log.exception("a scheduling pass failed")

    def run_pass(self) -> None:
        """Decide on everybody in the book, and tell them."""
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
                self._to_prepare[request.run].show_waiting("waits for others to prepare their data")
                continue
            handle = self._to_prepare.pop(request.run)
            self._preparing.add(request.run)
            handle.send(ev.Admitted())

    def _by_priority(self, book: dict[str, SchedulerHandle]) -> list[Request]:
        rules, requests = self._rules(), [handle.request for handle in book.values()]
        return list(by_priority(self.clock(), requests, FairShares(self._meter.usage, rules), rules))


class SchedulerHandle:
    """What one run tells the scheduler, and what the scheduler tells it.

    Args:
        scheduler: that keeps the book.
        request: what the run asks for.
    """

    def __init__(self, scheduler: Scheduler, request: Request) -> None:
        self._scheduler, self.request = scheduler, request
        self._workers = request.workers
        self.send: Send = _ignore
        self.show_waiting: Callable[[str], None] = _ignore

    def connect(self, send: Send, show_waiting: Callable[[str], None]) -> None:
        """Whom to tell of decisions, and of reasons to wait."""
        self.send, self.show_waiting = send, show_waiting

    def request_preparation(self) -> None:
        """The run waits for its turn to prepare data."""
        self._scheduler.update(self, to_prepare=True)

    def mark_preparing(self) -> None:
        """The run has been preparing data since before this scheduler started."""
        self._scheduler.update(self, preparing=True)

    def request_allocation(self, left_s: float | None, since: float) -> None:
        """The run waits for a place.

        Args:
            left_s: how long it will need one, if that is known by now.
            since: see `Request.since`.
        """
        self.request = replace(self.request, since=since)
        if left_s is not None:
            self.request = replace(self.request, expected_s=left_s * self._workers / self.request.workers)
        self._scheduler.update(self, waiting=True)

    def restore_allocation(self, allocation: Allocation, leaving: bool) -> None:
        """The run has had a place since before this scheduler started."""
        self._scheduler.update(self, allocated=replace(self.allocated_gang(allocation), leaving=leaving))

    def update_expected_end(self, in_s: float | None, restart_s: float | None) -> None:
        """How long the run will take with the workers that it has, and how long its last start took, where known."""
        if restart_s is not None:
            self.request = replace(self.request, restart_s=max(0.0, restart_s))
        if in_s is not None:
            self._scheduler.update_expected_end(self, self._scheduler.clock() + in_s)

    def report_node_failure(self, node: str) -> None:
        """A rank or an agent of the run has failed on a node, and not for a fault of the job's own."""
        self._scheduler.report_node_failure(node)

    def release(self) -> None:
        """The run wants nothing and holds nothing."""
        self._scheduler.update(self)

    def allocated_gang(self, allocation: Allocation) -> AllocatedGang:
        """The entry of the book for a place."""
        self._workers = workers_of(allocation.placement) or self.request.workers
        end = allocation.since + self.request.expected_s * self.request.workers / self._workers
        return AllocatedGang(self.request, allocation.placement, allocation.since, allocation.level, end)


def _ignore(_: object) -> None:
    """Before the run listens there is nothing to tell."""


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
