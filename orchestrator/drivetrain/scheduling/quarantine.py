"""Quarantine of nodes on which gangs fail repeatedly."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection

from drivetrain.scheduling.model import Node, Request
from drivetrain.scheduling.policy import cluster_can_hold
from drivetrain.scheduling.rules import Rules


class Quarantine:
    """Failures by node, and the end of each node's quarantine."""

    def __init__(self) -> None:
        self._failures: dict[str, deque[float]] = defaultdict(deque)
        self._until: dict[str, float] = {}

    def report_node_failure(self, node: str, now: float, rules: Rules) -> bool:
        """Record a failure of a node; return whether the node is quarantined for it."""
        recent = self._failures[node]
        recent.append(now)
        while recent[0] < now - rules.quarantine_s:
            recent.popleft()
        if len(recent) < rules.strikes:
            return False
        recent.clear()
        self._until[node] = now + rules.quarantine_s
        return True

    def quarantined_until(self, node: str, now: float) -> float | None:
        """Return the end of a node's quarantine; None if it is not quarantined."""
        until = self._until.get(node, 0.0)
        return until if until > now else None

    def usable(self, nodes: Collection[Node], requests: Collection[Request], now: float) -> list[Node]:
        """Return the nodes outside quarantine; all nodes if a queued gang does not fit otherwise."""
        good = [node for node in nodes if node.draining or self.quarantined_until(node.id, now) is None]
        needy = (r for r in requests if cluster_can_hold(nodes, r) and not cluster_can_hold(good, r))
        return list(nodes) if any(needy) else good
