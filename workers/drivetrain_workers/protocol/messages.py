"""Messages between agent, fork server and ranks: JSON over authenticated local sockets, never pickles."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

from pydantic import TypeAdapter

from drivetrain_workers.protocol import events
from drivetrain_workers.protocol.events import AgentEvent, RankId

BEAT_S = 0.5  # between two beats of a rank


@dataclass(frozen=True)
class Endpoint:
    """Where an agent listens: a Linux abstract socket (no file to leave behind) and the key that opens it."""

    name: str
    key: str

    @classmethod
    def create(cls) -> Endpoint:
        """A fresh endpoint that nobody can guess."""
        return cls(f"drivetrain-{secrets.token_hex(8)}", secrets.token_hex(32))

    def listen(self) -> Listener:
        """Listen for the processes that know the key."""
        return Listener(self._address, "AF_UNIX", backlog=64, authkey=bytes.fromhex(self.key))

    def connect(self) -> Connection[Any, Any]:
        """Connect to the agent."""
        return Client(self._address, "AF_UNIX", authkey=bytes.fromhex(self.key))

    @property
    def _address(self) -> str:
        return f"\0{self.name}"


@dataclass(frozen=True)
class Generation:
    """One life of a gang's rank processes, the same for every agent.

    Attributes:
        number: counts up over the life of the run; every restart is a new generation.
        world_size: ranks over all agents.
        rendezvous: ``file://`` or ``tcp://`` URL where the ranks of this generation find each other.
    """

    number: int
    world_size: int
    rendezvous: str


@dataclass(frozen=True)
class RankTask:
    """Everything that a rank process needs; it reads nothing else."""

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
        """Name the process: its rank, and its generation."""
        return RankId(self.rank, self.generation.number)

    @classmethod
    def from_json(cls, text: str) -> RankTask:
        """Inverse of `to_json`."""
        fields = json.loads(text)
        fields["endpoint"] = Endpoint(**fields["endpoint"])
        fields["generation"] = Generation(**fields["generation"])
        return cls(**fields)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class AgentTask:
    """Everything that an agent needs.

    Attributes:
        run_folder: of the run, reachable from the agent's node.
        dataset_folder: prepared dataset version.
        first_rank: rank of the node's first process.
        ranks: processes on the node, one per device.
        threads: CPU threads per rank.
        gpus: GPUs per rank; with none, GPUs that the node may have are hidden.
        lease_s: without a call for this long the agent ends itself and its ranks.
        several_nodes: whether the run may use more than this node.
        successor: name of the agent that keeps copies of this node's memory; empty where this is the only one.
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
    """The processes of an agent, for people and for tests.

    Attributes:
        ranks: process ids by rank, of ``generation``.
    """

    pid: int
    fork_server: int
    generation: int
    ranks: dict[int, int]


@dataclass(frozen=True)
class Address:
    """Where the first rank of a generation listens."""

    ip: str
    port: int


@dataclass(frozen=True)
class ForkRank:
    """Ask the fork server for a rank process.

    Attributes:
        entry: ``package.module:function`` that the process calls with ``task``.
        task: a `RankTask` as JSON.
    """

    source: RankId
    entry: str
    task: str


@dataclass(frozen=True)
class KillRanks:
    """Ask the fork server to end all ranks; it answers with `RanksKilled`."""


@dataclass(frozen=True)
class StopTraining:
    """Ask a rank to save a checkpoint after the current step and to end."""


Message = AgentEvent | ForkRank | KillRanks | StopTraining

_TYPES: dict[str, TypeAdapter[Any]] = {
    kind.__name__: TypeAdapter(kind)
    for kind in (
        *(kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, AgentEvent)),
        *(ForkRank, KillRanks, StopTraining),
    )
}


def encode(message: Message) -> bytes:
    """Return a message as JSON, with the name of its type."""
    return json.dumps({"type": type(message).__name__, "fields": asdict(message)}).encode()


def decode(content: bytes) -> Message:
    """Return the message of `encode`. Raises `pydantic.ValidationError` where a field has another type."""
    found = json.loads(content)
    message: Message = _TYPES[found["type"]].validate_python(found["fields"])
    return message


def send(connection: Connection[Any, Any], message: Message) -> None:
    """Send one message. Raises OSError when the other side is gone."""
    connection.send_bytes(encode(message))


def receive(connection: Connection[Any, Any]) -> Message:
    """Wait for one message. Raises EOFError or OSError when the other side is gone."""
    return decode(connection.recv_bytes())
