"""Simulation of the scheduler over a trace of jobs, on a virtual clock."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count

import numpy as np

from drivetrain.scheduling.free_resources import FreeResources
from drivetrain.scheduling.model import Admit, AllocatedGang, Decision, Node, Preempt, Request, workers_of
from drivetrain.scheduling.policy import cluster_can_hold, schedule
from drivetrain.scheduling.priority import Capacity, UsageMeter
from drivetrain.scheduling.rules import Rules
from drivetrain.scheduling.trace import TraceJob

Policy = Callable[
    [float, Collection[Node], Collection[AllocatedGang], Collection[Request], Mapping[str, float]],
    Decision,
]
STOP_S, START_S = 15.0, 15.0  # cost of a preemption: saving and stopping; starting and loading


@dataclass(frozen=True)
class Result:
    """The result of a simulation.

    Attributes:
        completion_s: time from submission to end, by job, in the order of the trace.
        waited_s: time from submission to the first start, by job.
        refused: number of jobs that are too large for the cluster.
        preemptions: total over all jobs.
        busy: (time, fraction of GPUs in use from then on).
    """

    completion_s: np.ndarray
    waited_s: np.ndarray
    refused: int
    preemptions: int
    busy: np.ndarray

    @property
    def utilisation(self) -> float:
        """Mean fraction of GPUs in use, from the first submission to the last end."""
        times, parts = self.busy[:, 0], self.busy[:, 1]
        span = times[-1] - times[0]
        return float((np.diff(times) * parts[:-1]).sum() / span) if span else 0.0


def coordinator_policy(rules: Rules) -> Policy:
    """Return the policy of the coordinator."""
    return partial(schedule, rules=rules)


def first_in_first_out(
    _: float,
    nodes: Collection[Node],
    gangs: Collection[AllocatedGang],
    requests: Collection[Request],
    __: Mapping[str, float],
) -> Decision:
    """Schedule strictly in the order of submission: a job that does not fit blocks all later ones (baseline)."""
    return _greedy(nodes, gangs, sorted(requests, key=lambda r: (r.since, r.run)), stop_at_first=True)


def shortest_first(jobs: Iterable[TraceJob]) -> Policy:
    """Return a baseline that knows all durations and schedules the shortest job first; long jobs may starve."""
    duration_s = {job.job: job.duration_s for job in jobs}

    def policy(_: float, nodes: Collection[Node], gangs: Collection[AllocatedGang], requests: Collection[Request],
               __: Mapping[str, float]) -> Decision:  # fmt: skip
        return _greedy(nodes, gangs, sorted(requests, key=lambda r: (duration_s[r.run], r.run)), stop_at_first=False)

    return policy


def _greedy(
    nodes: Collection[Node], gangs: Collection[AllocatedGang], requests: list[Request], stop_at_first: bool
) -> Decision:
    free, decision = FreeResources(nodes), Decision()
    for gang in gangs:
        free.allocate(gang.request, gang.placement)
    for request in requests:
        if placement := free.find_placement(request):
            free.allocate(request, placement)
            decision.actions.append(Admit(request.run, placement, 0))
        elif stop_at_first:
            break
        if not free.gpus.any():
            break
    return decision


class _Job:
    """A simulated job: its remaining work and its speed."""

    def __init__(self, job: TraceJob, priority: int) -> None:
        self.job, self.priority = job, priority
        self.left_s = job.duration_s  # with all its GPUs
        self.started: float | None = None
        self.gang: AllocatedGang | None = None
        self.computes_from = 0.0

    def request(self) -> Request:
        job = self.job
        expected_s = max(job.expected_s * self.left_s / job.duration_s, 1.0)
        return Request(
            run=job.job,
            user=job.user,
            queue=job.queue,
            priority=self.priority,
            since=job.submitted_s,
            workers=job.gpus,
            min_workers=job.min_gpus,
            cpus=0,
            gpus=1,
            expected_s=expected_s,
            restart_s=STOP_S + START_S,
        )

    def speed(self) -> float:
        assert self.gang
        return self.gang.workers / self.job.gpus

    def worked_until(self, now: float) -> None:
        self.left_s -= max(0.0, now - self.computes_from) * self.speed()
        self.computes_from = max(now, self.computes_from)


def simulate(jobs: list[TraceJob], nodes: list[Node], policy: Policy, rules: Rules) -> Result:
    """Simulate a trace to its end."""
    return _Simulation(jobs, nodes, policy, rules).run()


class _Simulation:
    def __init__(self, jobs: list[TraceJob], nodes: list[Node], policy: Policy, rules: Rules) -> None:
        self._nodes, self._policy = nodes, policy
        self._jobs = {job.job: _Job(job, job.priority + _queue_priority(rules, job)) for job in jobs}
        self._feasible = {name for name, job in self._jobs.items() if cluster_can_hold(nodes, job.request())}
        self._capacity = Capacity(nodes)
        self._number = count()
        self._events: list[tuple[float, int, str, str, AllocatedGang | None]] = []
        self._waiting: dict[str, Request] = {}
        self._running: dict[str, AllocatedGang] = {}
        self._half_life_s = rules.half_life_s
        self._meter = UsageMeter(0.0)
        self._shares: dict[str, float] = {}
        self._in_use, self._preemptions = 0, 0
        self._busy: list[tuple[float, float]] = []
        self._ended: dict[str, float] = {}

    def run(self) -> Result:
        for name in self._jobs:
            if name in self._feasible:
                self._at(self._jobs[name].job.submitted_s, "submitted", name)
        while self._events and len(self._ended) < len(self._feasible):
            now, changed = self._events[0][0], False
            while self._events and self._events[0][0] == now:
                _, _, what, name, gang = heapq.heappop(self._events)
                changed |= self._handle_event(now, what, name, gang)
            if changed:
                self._pass(now)
                self._busy.append((now, self._in_use / self._capacity.gpus))
        done = [self._jobs[name] for name in self._jobs if name in self._ended]  # quotas may refuse some, too
        return Result(
            np.array([self._ended[job.job.job] - job.job.submitted_s for job in done]),
            np.array([(job.started or 0.0) - job.job.submitted_s for job in done]),
            len(self._jobs) - len(done),
            self._preemptions,
            np.array(self._busy or [(0.0, 0.0)]),
        )

    def _pass(self, now: float) -> None:
        self._meter.advance(now, self._shares, self._half_life_s)
        decision = self._policy(now, self._nodes, self._running.values(), self._waiting.values(), self._meter.usage)
        for action in decision.actions:
            self._apply(now, action)

    def _handle_event(self, now: float, what: str, name: str, gang: AllocatedGang | None) -> bool:
        """Handle an event; return False if it belongs to an allocation that has been released."""
        job = self._jobs[name]
        if what == "submitted":
            self._waiting[name] = job.request()
            return True
        if gang is not job.gang:
            return False
        job.worked_until(now)
        self._release(name)
        if what == "ended":
            self._ended[name] = now
        else:
            self._preemptions += 1
            self._waiting[name] = job.request()
        return True

    def _apply(self, now: float, action: Admit | Preempt) -> None:
        job = self._jobs[action.run]
        if isinstance(action, Admit):
            request = self._waiting.pop(action.run)
            workers = workers_of(action.placement)
            job.computes_from = now + (0.0 if job.started is None else START_S)
            job.started = now if job.started is None else job.started
            slowdown = job.job.gpus / workers
            begins_in = job.computes_from - now
            end = now + begins_in + request.expected_s * slowdown
            job.gang = AllocatedGang(request, action.placement, now, action.level, end, steady=True)
            self._running[action.run] = job.gang
            self._use(request, workers)
            self._at(job.computes_from + job.left_s * slowdown, "ended", action.run, job.gang)
            return
        assert job.gang
        left = AllocatedGang(**{**vars(job.gang), "leaving": True})
        end = job.computes_from + job.left_s / job.speed()
        job.gang = self._running[action.run] = left
        self._at(min(now + STOP_S, end), "ended" if end <= now + STOP_S else "left", action.run, left)

    def _release(self, name: str) -> None:
        gang = self._running.pop(name)
        self._jobs[name].gang = None
        self._use(gang.request, -gang.workers)

    def _use(self, request: Request, workers: int) -> None:
        self._in_use += workers
        share = self._capacity.share(request, abs(workers))
        self._shares[request.user] = self._shares.get(request.user, 0.0) + (share if workers > 0 else -share)

    def _at(self, time: float, what: str, name: str, gang: AllocatedGang | None = None) -> None:
        heapq.heappush(self._events, (time, next(self._number), what, name, gang))


def _queue_priority(rules: Rules, job: TraceJob) -> int:
    queue = rules.queues.get(job.queue)
    return queue.priority if queue else 0
