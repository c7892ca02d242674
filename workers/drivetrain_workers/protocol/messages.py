"""What agent, fork server and ranks say to each other: JSON over authenticated local sockets, never pickles."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

Event = dict[str, Any]
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
class Beat:
    """Where a rank's main thread is.

    Attributes:
        step: optimizer steps done.
        phase: ``data``, ``step``, ``evaluate``, ``save``; before those, the part of the start that is under way.
        phases: counts phases begun, so that two ranks in the same phase can be compared.
        for_s: seconds in this phase.
        longest_s: that this phase took before, at most; 0 where it is the first.
    """

    step: int
    phase: str
    phases: int
    for_s: float
    longest_s: float


def send(connection: Connection[Any, Any], message: Event) -> None:
    """Send one message. Raises OSError when the other side is gone."""
    connection.send_bytes(json.dumps(message).encode())


def receive(connection: Connection[Any, Any]) -> Event:
    """Wait for one message. Raises EOFError or OSError when the other side is gone."""
    return json.loads(connection.recv_bytes())  # type: ignore[no-any-return]  # the sender is `send`
