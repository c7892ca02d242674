"""The current state of the cluster: nodes, allocations and queue."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from drivetrain_pipelines.storage.json_files import JsonObject

from drivetrain.scheduling.model import Request


@dataclass(frozen=True)
class NodeStatus:
    """A node and its resources in use.

    Attributes:
        ranks: by run.
        quarantined_until: seconds since the epoch; None if the node is not quarantined.
    """

    id: str
    address: str
    cpus: float
    gpus: float
    draining: bool
    quarantined_until: float | None
    ranks: Mapping[str, int] = field(default_factory=dict)
    cpus_used: float = 0.0
    gpus_used: float = 0.0

    @property
    def state(self) -> str:
        """``usable``, ``draining`` or ``quarantined``."""
        return "quarantined" if self.quarantined_until else "draining" if self.draining else "usable"


@dataclass(frozen=True)
class QueueEntry:
    """A queued run.

    Attributes:
        waits_for: an allocation, or data preparation.
        why: the reason given by the scheduler, if any.
    """

    request: Request
    waits_for: str
    why: str = ""

    def to_json(self) -> JsonObject:
        """Return the fields of the request and the reasons; None replaces infinity, which JSON lacks."""
        expected_s = self.request.expected_s if math.isfinite(self.request.expected_s) else None
        return {**asdict(self.request), "expected_s": expected_s, "waits_for": self.waits_for, "why": self.why}


@dataclass(frozen=True)
class ClusterStatus:
    """Nodes and queue; the next run comes first.

    Attributes:
        usage: recent share of the cluster by user.
    """

    nodes: tuple[NodeStatus, ...]
    queue: tuple[QueueEntry, ...]
    usage: Mapping[str, float]
