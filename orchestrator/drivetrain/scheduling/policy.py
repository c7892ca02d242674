"""One pass of the scheduler: admit gangs, give the reason for each wait, preempt gangs.

Gangs are considered in the order of priority. The first gang that does not fit gets a reservation at the earliest
possible time. Later gangs are admitted only if they do not delay it (EASY backfill, Lifka 1995). A gang of higher
priority may preempt gangs of lower priority, which save a checkpoint first.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from drivetrain.scheduling.free_resources import FreeResources
from drivetrain.scheduling.model import Admit, AllocatedGang, Decision, Node, Placement, Preempt, Request, workers_of
from drivetrain.scheduling.priority import Capacity, FairShares, by_priority, effective_priority
from drivetrain.scheduling.rules import Rules


def schedule(
    now: float,
    nodes: Collection[Node],
    gangs: Collection[AllocatedGang],
    requests: Collection[Request],
    usage: Mapping[str, float],
    rules: Rules,
) -> Decision:
    """Decide on every queued gang.

    Args:
        nodes: of the cluster.
        gangs: gangs with an allocation; ranks on nodes that are not in ``nodes`` use no resources.
        usage: recent share of the cluster by user, as `UsageMeter.usage`.
    """
    draining = {node.id for node in nodes if node.draining}
    one_pass = _Pass(now, [node for node in nodes if not node.draining], gangs, usage, rules)
    one_pass.drain(draining)
    for request in by_priority(now, requests, one_pass.shares, rules):
        one_pass.consider(request)
    one_pass.scale_up()
    return one_pass.decision


def cluster_can_hold(nodes: Collection[Node], request: Request) -> bool:
    """Check whether a gang would fit on the empty cluster."""
    return FreeResources(node for node in nodes if not node.draining).fits(request)


class _Reservation:
    """A reservation for the first gang that has to wait.

    Attributes:
        at: when its resources will be free; infinite if unknown.
        free_then: resources that are free at that time, without those of the gang.
    """

    def __init__(self, at: float, free_then: FreeResources) -> None:
        self.at, self.free_then = at, free_then


class _Quotas:
    """Worker quotas of users and queues, and their current use."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._user_workers: dict[str, int] = defaultdict(int)
        self._queue_workers: dict[str, int] = defaultdict(int)

    def count(self, request: Request, workers: int) -> None:
        """Count the workers of a gang."""
        self._user_workers[request.user] += workers
        self._queue_workers[request.queue] += workers

    def left(self, request: Request) -> int:
        """Return the number of additional workers that a gang may have."""
        return min((limit - used for _, limit, used in self._of(request)), default=request.workers)

    def within(self, request: Request) -> tuple[Request | None, str]:
        """Limit a gang to its quotas; return None and the reason if they do not allow its minimum size."""
        for whose, limit, used in self._of(request):
            if used + request.min_workers > limit:
                return None, f"waiting for the quota of {whose}: {used} of {limit} workers are in use"
        left = self.left(request)
        if left >= request.workers:
            return request, ""
        return replace(request, workers=left, expected_s=request.expected_s * request.workers / left), ""

    def _of(self, request: Request) -> Iterator[tuple[str, int, int]]:
        """Yield each quota that applies to a gang: its owner, its limit and the workers in use."""
        user, queue = self._rules.user(request.user), self._rules.queues.get(request.queue)
        if user.max_workers is not None:
            yield f"user {request.user}", user.max_workers, self._user_workers[request.user]
        if queue and queue.max_workers is not None:
            yield f"queue {request.queue}", queue.max_workers, self._queue_workers[request.queue]


class _Pass:
    def __init__(
        self,
        now: float,
        nodes: Collection[Node],
        gangs: Collection[AllocatedGang],
        usage: Mapping[str, float],
        rules: Rules,
    ) -> None:
        self.decision = Decision()
        self.shares = FairShares(usage, rules)
        self._now, self._rules, self._gangs = now, rules, list(gangs)
        self._admitted: list[AllocatedGang] = []
        self._capacity = Capacity(nodes)
        self._total = FreeResources(nodes)
        self._free = self._total.copy()
        self._quotas = _Quotas(rules)
        for gang in gangs:
            self._free.allocate(gang.request, gang.placement)
            self._count(gang.request, gang.workers)
        self._reservation: _Reservation | None = None
        self._tried = 0
        # Smallest rejected number of workers, by CPUs, GPUs and whether the gang ends before the reservation.
        self._rejected: dict[tuple[float, float, bool], int] = {}

    def drain(self, draining: Collection[str]) -> None:
        """Preempt the gangs on draining nodes."""
        for index, gang in enumerate(self._gangs):
            lost = [node for node, _ in gang.placement if node in draining]
            if lost and not gang.leaving:
                self.decision.actions.append(Preempt(gang.request.run, f"node {lost[0][:12]} is draining"))
                self._gangs[index] = replace(gang, leaving=True)

    def consider(self, request: Request) -> None:
        """Admit a gang, make a reservation for it, or record the reason why it waits."""
        waiting = self.decision.waiting
        within, quota = self._quotas.within(request)
        if not within:
            waiting[request.run] = quota
            return
        request = within
        if self._reservation and self._tried >= self._rules.backfill_depth:
            waiting[request.run] = "waiting for runs ahead in the queue"
        elif placement := self._placement(request):
            self._admit(request, placement)
        else:
            self.decision.short.append(request)
            if self._reservation:
                self._tried += 1
                waiting[request.run] = "waiting for resources; starting now would delay a run ahead in the queue"
            else:
                waiting[request.run] = self._reserve(request)

    def scale_up(self) -> None:
        """Restart gangs with more workers where the queue is empty and the time saved exceeds the cost."""
        if self.decision.waiting:
            return
        for gang in self._gangs:
            request, have = gang.request, gang.workers
            most = min(request.workers, have + self._quotas.left(request))
            if gang.leaving or not gang.steady or have >= most or math.isinf(gang.expected_end):
                continue
            free = self._free.copy()
            free.release(request, gang.placement)
            placement = free.find_placement(replace(request, workers=most))
            workers = workers_of(placement or ())
            saved = (gang.expected_end - self._now) * (1 - have / max(workers, 1))
            if placement and workers > have and saved > self._rules.elastic_gain * request.restart_s:
                free.allocate(request, placement)
                self._free = free
                self._count(request, workers - have)
                self.decision.actions.append(Preempt(request.run, f"scaling up from {have} to {workers} workers"))

    def _placement(self, request: Request) -> Placement | None:
        """Return a placement that is free now and does not delay the reserved gang."""
        if not self._reservation:
            return self._free.find_placement(request)
        soon = self._ends_in_time(request, request.workers)
        kind = (request.cpus, request.gpus, soon)
        if request.min_workers >= self._rejected.get(kind, 1 << 30):
            return None
        placement = self._free.find_placement(request) if soon else None
        if not (placement and self._ends_in_time(request, workers_of(placement))):
            placement = self._free.minimum(self._reservation.free_then).find_placement(request)
        if not placement:
            self._rejected[kind] = request.min_workers
        return placement

    def _ends_in_time(self, request: Request, workers: int) -> bool:
        """Check whether a gang with this number of workers would end before the reservation starts."""
        assert self._reservation
        at = self._reservation.at
        return math.isfinite(at) and self._now + request.expected_s * request.workers / workers <= at

    def _admit(self, request: Request, placement: Placement) -> None:
        self._free.allocate(request, placement)
        workers = workers_of(placement)
        if self._reservation and not self._ends_in_time(request, workers):
            self._reservation.free_then.allocate(request, placement)
        self._count(request, workers)
        urgency = effective_priority(request, self._now, self._rules)
        end = self._now + request.expected_s * request.workers / workers
        self._admitted.append(AllocatedGang(request, placement, self._now, urgency, end))
        self.decision.actions.append(Admit(request.run, placement, urgency))

    def _count(self, request: Request, workers: int) -> None:
        self.shares.add(request.user, self._capacity.share(request, workers))
        self._quotas.count(request, workers)

    def _reserve(self, request: Request) -> str:
        """Make the reservation for a gang; return the reason why it waits."""
        if not self._total.fits(request):
            return "waiting for nodes: the cluster is too small for this run"
        ends = sorted([*self._gangs, *self._admitted], key=self._end)
        count = self._ends_needed(request, ends)
        at = self._end(ends[count - 1])[0]
        victims = self._victims(request) if self._rules.preemption else []
        stop_s = max((victim.request.restart_s for victim in victims), default=0.0)
        if victims and at - self._now > stop_s:
            runs = ", ".join(victim.request.run for victim in victims)
            why = f"preempted by {request.run} with priority {request.priority}"
            self.decision.actions.extend(Preempt(victim.request.run, why) for victim in victims)
            leaving = [gang for gang in self._gangs if gang.leaving]
            self._set_reservation(request, self._now + stop_s, [*leaving, *victims])
            return f"waiting for {runs} to save and stop"
        self._set_reservation(request, at, ends[:count])
        if math.isinf(at):
            return "next in the queue; waiting for running jobs to end"
        return f"next in the queue; starts within {max(0.0, at - self._now):.0f} s"

    def _set_reservation(self, request: Request, at: float, ended: Collection[AllocatedGang]) -> None:
        free_then = self._free.copy()
        free_then.release_all(ended)
        if placement := free_then.find_placement(replace(request, workers=request.min_workers)):
            free_then.allocate(request, placement)
        self._reservation = _Reservation(at, free_then)

    def _end(self, gang: AllocatedGang) -> tuple[float, float, str]:
        """Return the sort key of a gang by the end of its allocation; with unknown ends, the oldest gang first."""
        end = self._now if gang.leaving else max(gang.expected_end, self._now)
        return end, gang.started, gang.request.run

    def _ends_needed(self, request: Request, ends: list[AllocatedGang]) -> int:
        """Return how many gangs, in this order, must end before a gang fits, by binary search."""
        low, high = 0, len(ends)
        while high - low > 1:
            middle = (low + high) // 2
            free = self._free.copy()
            free.release_all(ends[:middle])
            low, high = (low, middle) if free.fits(request) else (middle, high)
        return high

    def _victims(self, request: Request) -> list[AllocatedGang]:
        """Return the gangs to preempt; empty if the gang fits without preemption or does not fit even with it.

        The lowest priority comes first; among equals the gang that loses least: elastic ones, then the newest.
        """
        free = self._free.copy()
        free.release_all(gang for gang in self._gangs if gang.leaving)
        if free.fits(request):
            return []
        lower = [
            gang
            for gang in self._gangs
            if not gang.leaving and gang.request.preemptible and gang.level < request.priority
        ]
        lower.sort(key=lambda h: (h.level, h.request.min_workers == h.request.workers, -h.started))
        chosen: list[AllocatedGang] = []
        for gang in lower:
            if free.fits(request):
                break
            free.release(gang.request, gang.placement)
            chosen.append(gang)
        if not free.fits(request):
            return []
        for gang in reversed(chosen[:-1]):  # keep the gangs whose resources are not needed
            free.allocate(gang.request, gang.placement)
            if free.fits(request):
                chosen.remove(gang)
            else:
                free.release(gang.request, gang.placement)
        return chosen
