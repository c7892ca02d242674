"""Settings of an administrator: queues, users and parameters of the scheduler."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.spec import Spec
from drivetrain_pipelines.storage.yaml_files import parse_yaml, read_text
from pydantic import Field, ValidationError

from drivetrain.scheduling.model import Node

_log = logging.getLogger(__name__)
DEFAULT_QUEUE = "default"


class QueueRules(Spec):
    """A queue that jobs name."""

    priority: int = Field(0, description="added to the priority of its jobs")
    max_workers: int | None = Field(None, ge=0, description="total over its running jobs")


class UserRules(Spec):
    """A user of the cluster."""

    weight: float = Field(1.0, gt=0, description="twice the weight, twice the fair share")
    max_workers: int | None = Field(None, ge=0, description="total over their running jobs")


class Pool(Spec):
    """Nodes of one type that an autoscaler can add."""

    max: int = Field(ge=1, description="maximum number of nodes")
    cpus: float = Field(gt=0, description="of each")
    gpus: float = Field(0, ge=0, description="of each")


class Rules(Spec):
    """How runs share a cluster; ``scheduling.yaml`` in the server's home."""

    queues: dict[str, QueueRules] = Field(default_factory=lambda: {DEFAULT_QUEUE: QueueRules()})
    users: dict[str, UserRules] = {}
    others: UserRules = Field(UserRules(), description="users without an entry")
    aging_s: float = Field(6 * 3600, gt=0, description="time in the queue that raises the priority of a job by one")
    half_life_s: float = Field(24 * 3600, gt=0, description="time after which past usage counts half")
    backfill_depth: int = Field(
        200, ge=0, description="number of jobs considered after the first one that does not fit"
    )
    preemption: bool = True
    elastic_gain: float = Field(
        2.0, ge=1, description="scale up a job if this saves at least this multiple of its cost"
    )
    strikes: int = Field(3, ge=1, description="failures of ranks or agents that quarantine their node")
    quarantine_s: float = Field(3600, gt=0, description="period in which failures count, and length of the quarantine")
    max_preparing: int = Field(4, ge=1, description="maximum number of runs that prepare data at the same time")
    pools: dict[str, Pool] = Field({}, description="nodes that Ray's autoscaler can add")

    def user(self, name: str) -> UserRules:
        """Return the rules for a user."""
        return self.users.get(name, self.others)

    def possible_nodes(self, nodes: Collection[Node]) -> list[Node]:
        """Return the nodes that the pools could add to the existing ones."""
        existing = Counter((node.cpus, node.gpus) for node in nodes if not node.draining)
        possible = []
        for name, pool in self.pools.items():
            taken = min(pool.max, existing[pool.cpus, pool.gpus])
            existing[pool.cpus, pool.gpus] -= taken  # the remaining nodes of this shape belong to another pool
            possible += [Node(f"{name}-{number}", pool.cpus, pool.gpus) for number in range(pool.max - taken)]
        return possible


def load_rules(path: Path) -> Rules:
    """Load the rules from a YAML file; return the defaults if there is no file.

    Raises:
        InputError: the file is not valid.
    """
    if not path.exists():
        return Rules()
    document = parse_yaml(read_text(path, "rules"), str(path), "rules")
    try:
        return Rules.model_validate(document or {})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {key}", repr(first["input"])[:200], first["msg"]) from error


class ReloadingRules:
    """The rules of a file, reloaded at each call. An invalid file is ignored until it is fixed.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._last, self._problem = path, Rules(), ""

    def __call__(self) -> Rules:
        """Return the newest valid rules."""
        try:
            self._last, self._problem = load_rules(self._path), ""
        except InputError as error:
            if str(error) != self._problem:
                self._problem = str(error)
                _log.error("%s; the previous rules stay in effect", error)
        return self._last
