"""One pass of the scheduler: who gets which place, who waits for what, who has to leave.

Gangs are considered by precedence. The first that does not fit has a place reserved at the earliest time at which it
will, and those after it are let in only where that delays it in nothing (EASY backfill, Lifka 1995). A gang of higher
priority may have lower ones stopped, with a checkpoint.
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
    """Decide on every waiting gang.

    Args:
        nodes: of the cluster.
        gangs: what has its place; ranks on nodes that are not in ``nodes`` take nothing.
        usage: recent share of the cluster by user, as `UsageMeter.usage`.
    """
    going = {node.id for node in nodes if node.draining}
    one_pass = _Pass(now, [node for node in nodes if not node.draining], gangs, usage, rules)
    one_pass.leave(going)
    for request in by_priority(now, requests, one_pass.shares, rules):
        one_pass.consider(request)
    one_pass.grow()
    return one_pass.decision


def cluster_can_hold(nodes: Collection[Node], request: Request) -> bool:
    """Whether a gang would fit if nothing else ran."""
    return FreeResources(node for node in nodes if not node.draining).fits(request)


class _Reservation:
    """The place that is kept for the first gang that has to wait.

    Attributes:
        at: when it will be free; infinite where nobody knows.
        free_then: what is free then, the gang already placed.
    """

    def __init__(self, at: float, free_then: FreeResources) -> None:
        self.at, self.free_then = at, free_then


class _Quotas:
    """How many workers users and queues have, and how many they may have."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._user_workers: dict[str, int] = defaultdict(int)
        self._queue_workers: dict[str, int] = defaultdict(int)

    def count(self, request: Request, workers: int) -> None:
        """Add workers that a gang has been given."""
        self._user_workers[request.user] += workers
        self._queue_workers[request.queue] += workers

    def left(self, request: Request) -> int:
        """Return how many more workers a gang may have."""
        return min((limit - used for _, limit, used in self._of(request)), default=request.workers)

    def within(self, request: Request) -> tuple[Request | None, str]:
        """Return the gang as large as the quotas allow; or None, and which quota is used up."""
        for whose, limit, used in self._of(request):
            if used + request.min_workers > limit:
                return None, f"waits for the quota of {whose}: {used} of {limit} workers are in use"
        left = self.left(request)
        if left >= request.workers:
            return request, ""
        return replace(request, workers=left, expected_s=request.expected_s * request.workers / left), ""

    def _of(self, request: Request) -> Iterator[tuple[str, int, int]]:
        """Whose quotas a gang counts for: their limit, and how many workers are in use."""
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
        self._hopeless: dict[tuple[float, float, bool], int] = {}  # least workers that were refused, by kind of gang

    def leave(self, going: Collection[str]) -> None:
        """Have gangs save and leave the nodes that are about to go."""
        for index, gang in enumerate(self._gangs):
            lost = [node for node, _ in gang.placement if node in going]
            if lost and not gang.leaving:
                self.decision.actions.append(Preempt(gang.request.run, f"node {lost[0][:12]} is about to leave"))
                self._gangs[index] = replace(gang, leaving=True)

    def consider(self, request: Request) -> None:
        """Admit a gang, reserve a place for it, or say why it waits."""
        waiting = self.decision.waiting
        within, quota = self._quotas.within(request)
        if not within:
            waiting[request.run] = quota
            return
        request = within
        if self._reservation and self._tried >= self._rules.backfill_depth:
            waiting[request.run] = "waits behind others"
        elif placement := self._placement(request):
            self._admit(request, placement)
        else:
            self.decision.short.append(request)
            if self._reservation:
                self._tried += 1
                waiting[request.run] = "waits for room that delays nobody before it"
            else:
                waiting[request.run] = self._reserve(request)

    def grow(self) -> None:
        """Have gangs with fewer workers than they could use start anew with more, where nobody waits and it pays."""
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
                self.decision.actions.append(Preempt(request.run, f"grows from {have} to {workers} workers"))

    def _placement(self, request: Request) -> Placement | None:
        """A place that is free now and delays no reserved gang."""
        if not self._reservation:
            return self._free.find_placement(request)
        soon = self._ends_in_time(request, request.workers)
        kind = (request.cpus, request.gpus, soon)
        if request.min_workers >= self._hopeless.get(kind, 1 << 30):
            return None
        placement = self._free.find_placement(request) if soon else None
        if not (placement and self._ends_in_time(request, workers_of(placement))):
            placement = self._free.minimum(self._reservation.free_then).find_placement(request)
        if not placement:
            self._hopeless[kind] = request.min_workers
        return placement

    def _ends_in_time(self, request: Request, workers: int) -> bool:
        """Whether a gang with these workers would have ended when the reserved place is needed."""
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
        """Keep a place for a gang; returns why it waits."""
        if not self._total.fits(request):
            return "waits for nodes: the cluster as it is cannot hold it"
        ends = sorted([*self._gangs, *self._admitted], key=self._end)
        count = self._ends_needed(request, ends)
        at = self._end(ends[count - 1])[0]
        victims = self._victims(request) if self._rules.preemption else []
        patience = max((victim.request.restart_s for victim in victims), default=0.0)
        if victims and at - self._now > patience:
            runs = ", ".join(victim.request.run for victim in victims)
            why = f"makes room for {request.run} of priority {request.priority}"
            self.decision.actions.extend(Preempt(victim.request.run, why) for victim in victims)
            leaving = [gang for gang in self._gangs if gang.leaving]
            self._keep(request, self._now + patience, [*leaving, *victims])
            return f"waits until {runs} have saved and left"
        self._keep(request, at, ends[:count])
        if math.isinf(at):
            return "is next; waits for running jobs to end"
        return f"is next; has a place in {max(0.0, at - self._now):.0f} s at the latest"

    def _keep(self, request: Request, at: float, gone: Collection[AllocatedGang]) -> None:
        free_then = self._free.copy()
        free_then.release_all(gone)
        if placement := free_then.find_placement(replace(request, workers=request.min_workers)):
            free_then.allocate(request, placement)
        self._reservation = _Reservation(at, free_then)

    def _end(self, gang: AllocatedGang) -> tuple[float, float, str]:
        """When a gang gives its place back; of those of which nobody knows, the oldest first."""
        end = self._now if gang.leaving else max(gang.expected_end, self._now)
        return end, gang.started, gang.request.run

    def _ends_needed(self, request: Request, ends: list[AllocatedGang]) -> int:
        """How many gangs, in this order, have to end before a gang fits; room only grows, so halving finds it."""
        low, high = 0, len(ends)
        while high - low > 1:
            middle = (low + high) // 2
            free = self._free.copy()
            free.release_all(ends[:middle])
            low, high = (low, middle) if free.fits(request) else (middle, high)
        return high

    def _victims(self, request: Request) -> list[AllocatedGang]:
        """The gangs of lower priority that have to leave; none where it fits without, or not even with all of them.

        The lowest first, and of those that which lost the least when it stops: elastic ones, then the youngest.
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
        for gang in reversed(chosen[:-1]):  # those that turned out not to matter stay
            free.allocate(gang.request, gang.placement)
            if free.fits(request):
                chosen.remove(gang)
            else:
                free.release(gang.request, gang.placement)
        return chosen
