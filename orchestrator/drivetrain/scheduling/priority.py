"""The order of the queue: priority, age, fair share."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from drivetrain.scheduling.model import Node, Request
from drivetrain.scheduling.rules import Rules


class Capacity:
    """Total resources of a cluster."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        nodes = list(nodes)
        self.cpus = sum(node.cpus for node in nodes)
        self.gpus = sum(node.gpus for node in nodes)

    def share(self, request: Request, workers: int) -> float:
        """Return the dominant share of a gang: the largest of its shares of CPUs and GPUs (Ghodsi et al. 2011)."""
        parts = [0.0]
        if request.cpus and self.cpus:
            parts.append(request.cpus / self.cpus)
        if request.gpus and self.gpus:
            parts.append(request.gpus / self.gpus)
        return workers * max(parts)


class FairShares:
    """Weighted share of the cluster by user, current and recent.

    Args:
        usage: by user, recent share of the cluster, from `UsageMeter`.
        rules: weights.
    """

    def __init__(self, usage: Mapping[str, float], rules: Rules) -> None:
        self._shares = defaultdict(float, usage)
        self._rules = rules

    def add(self, user: str, share: float) -> None:
        """Add to the share of a user."""
        self._shares[user] += share

    def of(self, user: str) -> float:
        """Return the weighted share of a user; the smallest goes first."""
        return self._shares[user] / self._rules.user(user).weight


class UsageMeter:
    """Exponential moving average of each user's share of the cluster.

    Args:
        now: start of the measurement.
        usage: previous values.
    """

    def __init__(self, now: float, usage: Mapping[str, float] | None = None) -> None:
        self._now = now
        self.usage: dict[str, float] = dict(usage or {})

    def advance(self, now: float, shares: Mapping[str, float], half_life_s: float) -> None:
        """Update the averages for the time until ``now``, in which users held ``shares``."""
        kept = 0.5 ** (max(0.0, now - self._now) / half_life_s)
        self._now = now
        for user in {*self.usage, *shares}:
            self.usage[user] = self.usage.get(user, 0.0) * kept + shares.get(user, 0.0) * (1 - kept)


def effective_priority(request: Request, now: float, rules: Rules) -> int:
    """Return the priority plus one for every `Rules.aging_s` in the queue, which prevents starvation."""
    return request.priority + int(max(0.0, now - request.since) // rules.aging_s)


def by_priority(now: float, requests: Iterable[Request], shares: FairShares, rules: Rules) -> Iterator[Request]:
    """Yield requests by effective priority, then by the smallest share of their user, then by waiting time.

    Shares are read before each request, so that the caller can add what it has allocated to the previous one.
    """
    levels: dict[int, dict[str, list[Request]]] = defaultdict(lambda: defaultdict(list))
    for request in requests:
        levels[effective_priority(request, now, rules)][request.user].append(request)
    for urgency in sorted(levels, reverse=True):
        queues = levels[urgency]
        for queue in queues.values():
            queue.sort(key=lambda request: (request.since, request.run), reverse=True)
        heap = [(shares.of(user), queue[-1].since, user) for user, queue in queues.items()]
        heapq.heapify(heap)
        while heap:
            *_, user = heapq.heappop(heap)
            yield queues[user].pop()
            if queues[user]:
                heapq.heappush(heap, (shares.of(user), queues[user][-1].since, user))
