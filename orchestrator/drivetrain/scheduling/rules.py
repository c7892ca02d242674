"""What an administrator may set: queues, users and how patient the scheduler is."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml
from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.spec import Spec
from pydantic import Field, ValidationError

from drivetrain.scheduling.model import Node

_log = logging.getLogger(__name__)
DEFAULT_QUEUE = "default"


class QueueRules(Spec):
    """A queue that jobs name."""

    priority: int = Field(0, description="added to the priority of its jobs")
    max_workers: int | None = Field(None, ge=0, description="of all its running jobs together")


class UserRules(Spec):
    """A user of the cluster."""

    weight: float = Field(1.0, gt=0, description="twice the weight, twice the fair share")
    max_workers: int | None = Field(None, ge=0, description="of all their running jobs together")


class Pool(Spec):
    """Nodes of one kind that an autoscaler adds when they are asked for."""

    max: int = Field(ge=1, description="nodes at the most")
    cpus: float = Field(gt=0, description="of each")
    gpus: float = Field(0, ge=0, description="of each")


class Rules(Spec):
    """How runs share a cluster; ``scheduling.yaml`` in the server's home."""

    queues: dict[str, QueueRules] = Field(default_factory=lambda: {DEFAULT_QUEUE: QueueRules()})
    users: dict[str, UserRules] = {}
    others: UserRules = Field(UserRules(), description="every user who is not named")
    aging_s: float = Field(6 * 3600, gt=0, description="after so long in the queue a job counts one priority higher")
    half_life_s: float = Field(24 * 3600, gt=0, description="after so long, use of the cluster counts half")
    backfill_depth: int = Field(200, ge=0, description="jobs that are tried after the first one that does not fit")
    preemption: bool = True
    elastic_gain: float = Field(2.0, ge=1, description="grow a job where this saves so many times what it costs")
    strikes: int = Field(3, ge=1, description="failures of ranks or agents after which their node is left alone")
    quarantine_s: float = Field(3600, gt=0, description="within which they count, and for so long")
    max_preparing: int = Field(4, ge=1, description="runs that prepare data at the same time")
    pools: dict[str, Pool] = Field({}, description="nodes that Ray's autoscaler can add")

    def user(self, name: str) -> UserRules:
        """The rules for a user."""
        return self.users.get(name, self.others)

    def possible_nodes(self, nodes: Collection[Node]) -> list[Node]:
        """The nodes that could be added to those that there are."""
        there = Counter((node.cpus, node.gpus) for node in nodes if not node.draining)
        possible = []
        for name, pool in self.pools.items():
            taken = min(pool.max, there[pool.cpus, pool.gpus])
            there[pool.cpus, pool.gpus] -= taken  # the others of that shape are of another pool
            possible += [Node(f"{name}-{number}", pool.cpus, pool.gpus) for number in range(pool.max - taken)]
        return possible


def load_rules(path: Path) -> Rules:
    """Rules from a YAML file; the defaults where there is none.

    Raises:
        InputError: it is not valid.
    """
    if not path.exists():
        return Rules()
    try:
        document: Any = yaml.safe_load(path.read_text()) or {}
        return Rules.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {key}", repr(first["input"])[:200], first["msg"]) from error
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise InputError(str(path), "text that is not YAML", "rules", " ".join(str(error).split())) from error


class ReloadingRules:
    """The rules of a file, read anew at each call; a file that is not valid changes nothing until it is.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._last, self._problem = path, Rules(), ""

    def __call__(self) -> Rules:
        """The newest valid rules."""
        try:
            self._last, self._problem = load_rules(self._path), ""
        except InputError as error:
            if str(error) != self._problem:
                self._problem = str(error)
                _log.error("%s; the rules before it stay", error)
        return self._last
