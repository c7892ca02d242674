"""Messages between agent, fork server and ranks: JSON over authenticated local sockets, without pickle."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

from pydantic import TypeAdapter

from drivetrain_workers.protocol import events
from drivetrain_workers.protocol.events import AgentEvent, RankId

HEARTBEAT_INTERVAL_S = 0.5  # between two heartbeats of a rank


@dataclass(frozen=True)
class Endpoint:
    """Address of an agent: a Linux abstract socket (which leaves no file) and its authentication key."""

    name: str
    key: str

    @classmethod
    def create(cls) -> Endpoint:
        """Create an endpoint with a random name and key."""
        return cls(f"drivetrain-{secrets.token_hex(8)}", secrets.token_hex(32))

    def listen(self) -> Listener:
        """Listen for processes that know the key."""
        return Listener(self._address, "AF_UNIX", backlog=64, authkey=bytes.fromhex(self.key))

    def connect(self) -> Connection[Any, Any]:
        """Connect to the agent."""
        return Client(self._address, "AF_UNIX", authkey=bytes.fromhex(self.key))

    @property
    def _address(self) -> str:
        return f"\0{self.name}"


@dataclass(frozen=True)
class Generation:
    """One set of a gang's rank processes, the same for every agent.

    Attributes:
        number: increases over the life of the run; every restart is a new generation.
        world_size: ranks over all agents.
        rendezvous: path of a file, or ``tcp://`` URL, for the process group of this generation.
    """

    number: int
    world_size: int
    rendezvous: str


@dataclass(frozen=True)
class RankTask:
    """All inputs of a rank process."""

    endpoint: Endpoint
    rank: int
    local_rank: int
    local_ranks: int
    generation: Generation
    run_folder: str
    dataset_folder: str
    memory_folder: str

    @property
    def id(self) -> RankId:
        """Rank and generation of the process."""
        return RankId(self.rank, self.generation.number)

    @classmethod
    def from_json(cls, text: str) -> RankTask:
        """Decode the result of `to_json`."""
        fields = json.loads(text)
        fields["endpoint"] = Endpoint(**fields["endpoint"])
        fields["generation"] = Generation(**fields["generation"])
        return cls(**fields)

    def to_json(self) -> str:
        """Encode as one line of JSON."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class AgentTask:
    """All inputs of an agent.

    Attributes:
        run_folder: folder of the run, reachable from the agent's node.
        dataset_folder: prepared dataset version.
        first_rank: rank of the node's first process.
        ranks: processes on the node, one per device.
        threads: CPU threads per rank.
        gpus: GPUs per rank; if 0, the node's GPUs are hidden.
        lease_s: without a call for this long, the agent ends itself and its ranks.
        several_nodes: whether the run may use more than this node.
        successor: name of the agent that keeps copies of this node's memory; empty if there is only one agent.
    """

    run_folder: str
    dataset_folder: str
    first_rank: int
    ranks: int
    threads: int
    gpus: int
    lease_s: float
    several_nodes: bool
    successor: str


@dataclass(frozen=True)
class AgentSnapshot:
    """The processes of an agent, for users and tests.

    Attributes:
        ranks: process ids by rank, of ``generation``.
    """

    pid: int
    fork_server: int
    generation: int
    ranks: dict[int, int]


@dataclass(frozen=True)
class Address:
    """Address on which the first rank of a generation listens."""

    ip: str
    port: int


@dataclass(frozen=True)
class ForkRank:
    """Request for a rank process, to the fork server.

    Attributes:
        entry: ``package.module:function`` that the process calls with ``task``.
        task: a `RankTask` as JSON.
    """

    source: RankId
    entry: str
    task: str


@dataclass(frozen=True)
class KillRanks:
    """Request to end all ranks, to the fork server; answered with `RanksKilled`."""


@dataclass(frozen=True)
class StopTraining:
    """Request to a rank to save a checkpoint after the current step and to exit."""


Message = AgentEvent | ForkRank | KillRanks | StopTraining

_TYPES: dict[str, TypeAdapter[Any]] = {
    kind.__name__: TypeAdapter(kind)
    for kind in (
        *(kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, AgentEvent)),
        *(ForkRank, KillRanks, StopTraining),
    )
}


def encode(message: Message) -> bytes:
    """Encode a message as JSON, with the name of its type."""
    return json.dumps({"type": type(message).__name__, "fields": asdict(message)}).encode()


def decode(content: bytes) -> Message:
    """Decode the result of `encode`. Raises `pydantic.ValidationError` where a field has another type."""
    found = json.loads(content)
    message: Message = _TYPES[found["type"]].validate_python(found["fields"])
    return message


def send(connection: Connection[Any, Any], message: Message) -> None:
    """Send one message. Raises OSError when the other side is gone."""
    connection.send_bytes(encode(message))


def receive(connection: Connection[Any, Any]) -> Message:
    """Wait for one message. Raises EOFError or OSError when the other side is gone."""
    return decode(connection.recv_bytes())
