"""What goes over the wire between transforming actors and ranks: endpoints, tickets, batches."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pyarrow as pa

from drivetrain_pipelines.arrow_types import array_of, numbers_of
from drivetrain_pipelines.checksums import read_json, write_json
from drivetrain_pipelines.errors import CorruptFileError
from drivetrain_pipelines.stream.columns import Columns


@dataclass(frozen=True)
class Ticket:
    """Asks for every ``every``-th global batch from position ``start`` on, and of each for some rows.

    Attributes:
        start: global position, a multiple of ``global_batch``.
        first_row, last_row: of the global batch, the last one not included.
    """

    start: int
    every: int
    global_batch: int
    first_row: int
    last_row: int

    def encode(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, text: bytes) -> Ticket:
        """Inverse of `encode`."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Refusal:
    """Why an actor that lives cannot serve.

    Attributes:
        error: name of one of Drivetrain's errors.
    """

    error: str
    message: str

    def encode(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, text: bytes) -> Refusal:
        """Inverse of `encode`."""
        return cls(**json.loads(text))


class Endpoints:
    """Where a run's actors can be reached: small files in the run's folder, so that a successor is found again.

    Args:
        folder: of one run, reachable from every node; files in it are private to the user.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def create(self) -> None:
        """Make a new token; endpoints that were published before are of no use any more."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for old in self._folder.glob("actor-*.json"):
            old.unlink()
        descriptor = os.open(self._folder / "token", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))

    @property
    def token(self) -> str:
        """What whoever asks an actor must know."""
        return (self._folder / "token").read_text()

    def publish(self, number: int, address: str) -> None:
        """Say where an actor listens."""
        write_json(self._path(number), {"address": address, "pid": os.getpid()})

    def find(self, number: int) -> str | None:
        """Where an actor listens, ``host:port``; None when it has not said so yet."""
        try:
            return str(read_json(self._path(number))["address"])
        except CorruptFileError:
            return None

    def _path(self, number: int) -> Path:
        return self._folder / f"actor-{number}.json"


def to_arrow(columns: dict[str, npt.NDArray[Any]]) -> pa.RecordBatch:
    """Columns of numbers as a record batch."""
    return pa.record_batch({name: array_of(values) for name, values in columns.items()})


def from_arrow(batch: pa.RecordBatch) -> Columns:
    """Inverse of `to_arrow`, without a copy."""
    return {name: numbers_of(batch.column(name)) for name in batch.schema.names}
