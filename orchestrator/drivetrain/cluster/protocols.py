"""The cluster as a run's loop sees it: its gang and that gang's agents. `drivetrain.cluster.gang` does it with Ray."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from drivetrain_pipelines.errors import DrivetrainError
from drivetrain_workers.agent.event_log import LoggedEvent
from drivetrain_workers.model_processes.requests import Request
from drivetrain_workers.protocol.messages import Address, AgentSnapshot, Generation

from drivetrain.scheduling.model import Placement


class NodesGoneError(DrivetrainError):
    """Nodes of a placement have left the cluster."""

    def __init__(self, nodes: list[str]) -> None:
        super().__init__(nodes)
        self.nodes = nodes

    def __str__(self) -> str:
        return f"gone from the cluster: node {', '.join(node[:8] for node in self.nodes)}"


class AgentLostError(DrivetrainError):
    """An agent is dead, or does not answer."""

    def __init__(self, index: int, detail: str) -> None:
        super().__init__(index, detail)
        self.index, self.detail = index, detail

    def __str__(self) -> str:
        return self.detail


class AgentHandle(Protocol):
    """One agent of a gang; see `drivetrain_workers.agent.agent.NodeAgent`.

    Every method that returns something raises `AgentLostError` when the agent is dead.
    """

    @property
    def id(self) -> str:
        """Name of this very process: the agent that replaces it has another."""

    @property
    def index(self) -> int:
        """Position of its node in the placement."""

    @property
    def ranks(self) -> int:
        """Number of its ranks."""

    def address(self) -> Address:
        """Return an address where the first rank can listen."""

    def start(self, generation: Generation) -> Callable[[], None]:
        """Have it start a generation; call the result to wait until it has accepted."""

    def stop(self) -> None:
        """Have it kill its ranks; does not wait."""

    def request_stop(self) -> None:
        """Have it ask its ranks to save and end; does not wait."""

    def events(self, since: int, timeout_s: float) -> list[LoggedEvent]:
        """Return its events from number ``since`` on; wait up to ``timeout_s`` for the first."""

    def snapshot(self) -> AgentSnapshot:
        """Return its processes."""

    def run_request(self, request: Request) -> str:
        """Have it answer a request about the newest checkpoint. Raises also what the model process raises."""

    def finish_uploads(self, timeout_s: float) -> bool:
        """Wait until storage has every checkpoint; False when it has not, after ``timeout_s``."""


class Gang(Protocol):
    """The agents of one run."""

    def place(self, dataset: str, placement: Placement, wanted: Callable[[], bool]) -> list[AgentHandle]:
        """Return all agents of a placement, new ones for those that died; wait until the nodes have room.

        Args:
            wanted: asked while it waits; without agents it returns when they are not wanted any more.

        Raises:
            NodesGoneError: a node has left the cluster.
        """

    def attach(self, placement: Placement) -> list[AgentHandle]:
        """Return the agents that live. Raises AgentLostError when one of them is gone."""

    def start(self, agents: Sequence[AgentHandle], number: int) -> None:
        """Start a generation; return when all agents have accepted. Raises AgentLostError."""

    def release(self, keep_copies: bool = False) -> None:
        """End all agents and release the resources; copies in the nodes' memory may stay for their successors."""
