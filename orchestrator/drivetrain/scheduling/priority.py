"""In which order the waiting are considered: priority, age, fair share."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from drivetrain.scheduling.model import Node, Request
from drivetrain.scheduling.rules import Rules


class Capacity:
    """All that a cluster has."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        nodes = list(nodes)
        self.cpus = sum(node.cpus for node in nodes)
        self.gpus = sum(node.gpus for node in nodes)

    def share(self, request: Request, workers: int) -> float:
        """The part of the cluster that a gang takes, of what it takes most of: dominant share (Ghodsi et al. 2011)."""
        parts = [0.0]
        if request.cpus and self.cpus:
            parts.append(request.cpus / self.cpus)
        if request.gpus and self.gpus:
            parts.append(request.gpus / self.gpus)
        return workers * max(parts)


class FairShares:
    """How much of the cluster each user has, and lately had, by their weight.

    Args:
        usage: by user, recent share of the cluster, from `UsageMeter`.
        rules: weights.
    """

    def __init__(self, usage: Mapping[str, float], rules: Rules) -> None:
        self._shares = defaultdict(float, usage)
        self._rules = rules

    def add(self, user: str, share: float) -> None:
        """A user holds more."""
        self._shares[user] += share

    def of(self, user: str) -> float:
        """What a user has, by weight: the least goes first."""
        return self._shares[user] / self._rules.user(user).weight


class UsageMeter:
    """Each user's share of the cluster over time, the past counting half after every half-life.

    Args:
        now: when the measuring begins.
        usage: what was measured before.
    """

    def __init__(self, now: float, usage: Mapping[str, float] | None = None) -> None:
        self._now = now
        self.usage: dict[str, float] = dict(usage or {})

    def advance(self, now: float, shares: Mapping[str, float], half_life_s: float) -> None:
        """Time passed, in which users held ``shares``."""
        kept = 0.5 ** (max(0.0, now - self._now) / half_life_s)
        self._now = now
        for user in {*self.usage, *shares}:
            self.usage[user] = self.usage.get(user, 0.0) * kept + shares.get(user, 0.0) * (1 - kept)


def effective_priority(request: Request, now: float, rules: Rules) -> int:
    """Priority, raised by one for every `Rules.aging_s` in the queue: nobody starves."""
    return request.priority + int(max(0.0, now - request.since) // rules.aging_s)


def by_priority(now: float, requests: Iterable[Request], shares: FairShares, rules: Rules) -> Iterator[Request]:
    """Requests, the most urgent first: by level, then the user who has least, then who waits longest.

    Shares are read anew before each one: the caller adds what it has given to the one before.
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
