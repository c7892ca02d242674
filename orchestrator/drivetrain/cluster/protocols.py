"""The interfaces of gang and agent for the loop of a run. `drivetrain.cluster.gang` implements them with Ray."""

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
        return f"nodes left the cluster: {', '.join(node[:8] for node in self.nodes)}"


class AgentLostError(DrivetrainError):
    """An agent is dead, or does not respond."""

    def __init__(self, index: int, detail: str) -> None:
        super().__init__(index, detail)
        self.index, self.detail = index, detail

    def __str__(self) -> str:
        return self.detail


class AgentHandle(Protocol):
    """One agent of a gang; see `drivetrain_workers.agent.agent.NodeAgent`.

    Every method with a result raises `AgentLostError` if the agent is dead.
    """

    @property
    def id(self) -> str:
        """Identifier of this process; a replacement agent has another one."""

    @property
    def index(self) -> int:
        """Position of its node in the placement."""

    @property
    def ranks(self) -> int:
        """Number of its ranks."""

    def address(self) -> Address:
        """Return an address where the first rank can listen."""

    def start(self, generation: Generation) -> Callable[[], None]:
        """Start a generation; call the result to wait until the agent has accepted it."""

    def stop(self) -> None:
        """Kill its ranks, without waiting."""

    def request_stop(self) -> None:
        """Ask its ranks to save and end, without waiting."""

    def events(self, since: int, timeout_s: float) -> list[LoggedEvent]:
        """Return its events from number ``since`` on; wait up to ``timeout_s`` for the first."""

    def snapshot(self) -> AgentSnapshot:
        """Return its processes."""

    def run_request(self, request: Request) -> str:
        """Return the answer to a request about the newest checkpoint. Also raises the errors of the model process."""

    def finish_uploads(self, timeout_s: float) -> bool:
        """Wait until every checkpoint is uploaded; return False after ``timeout_s``."""


class Gang(Protocol):
    """The agents of one run."""

    def place(self, dataset: str, placement: Placement, wanted: Callable[[], bool]) -> list[AgentHandle]:
        """Return all agents of a placement; replace dead ones, and wait until the nodes have free resources.

        Args:
            dataset: location of the dataset.
            placement: ranks by node.
            wanted: polled during the wait; the method returns no agents when it is false.

        Raises:
            NodesGoneError: a node has left the cluster.
        """

    def attach(self, placement: Placement) -> list[AgentHandle]:
        """Return the existing agents. Raises AgentLostError if one of them is lost."""

    def start(self, agents: Sequence[AgentHandle], number: int) -> None:
        """Start a generation; return after all agents have accepted it. Raises AgentLostError."""

    def release(self, keep_copies: bool = False) -> None:
        """End all agents and release the resources; optionally keep the checkpoint copies in memory."""
