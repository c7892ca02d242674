"""What goes over the wire between transforming actors and ranks: endpoints, sealed requests, batches."""

from __future__ import annotations

import hmac
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pyarrow as pa

from drivetrain_pipelines.errors import CorruptFileError
from drivetrain_pipelines.storage.arrow_types import array_of, numbers_of
from drivetrain_pipelines.storage.checksums import JsonObject, read_json, write_json
from drivetrain_pipelines.stream.columns import Columns

_MOST_CHARACTERS = 2000  # gRPC carries it in a header, of which it takes 16 KiB


@dataclass(frozen=True)
class Ticket:
    """Asks for every ``every``-th global batch from position ``start`` on, and of each for some rows.

    Attributes:
        start: global position.
        first_row, last_row: of the global batch, the last one not included.
    """

    start: int
    every: int
    global_batch: int
    first_row: int
    last_row: int


@dataclass(frozen=True)
class Refusal:
    """Why an actor that lives cannot serve.

    Attributes:
        error: name of one of Drivetrain's errors.
    """

    error: str
    message: str

    def encode(self) -> bytes:
        """As JSON, which is ASCII."""
        return json.dumps({"error": self.error, "message": self.message[:_MOST_CHARACTERS]}).encode()

    @classmethod
    def decode(cls, text: bytes) -> Refusal:
        """Inverse of `encode`."""
        return cls(**json.loads(text))


def seal(token: str, content: JsonObject) -> tuple[bytes, str]:
    """A request that only who knows the token could have made, without the token in it; and the proof to expect back.

    A server that has taken a dead actor's port learns nothing from it, and cannot answer it.
    """
    body = json.dumps({**content, "nonce": secrets.token_hex(16)})
    request = {"body": body, "seal": _sign(token, "request", body)}
    return json.dumps(request).encode(), _sign(token, "answer", body)


def unseal(token: str, request: bytes) -> tuple[JsonObject, str]:
    """What was asked, and the proof to send back.

    Raises:
        PermissionError: whoever made it does not know the token.
    """
    try:
        parts = json.loads(request)
        body, signature = str(parts["body"]), str(parts["seal"])
    except (ValueError, KeyError, TypeError) as error:
        raise PermissionError("the request is not sealed") from error
    if not hmac.compare_digest(signature, _sign(token, "request", body)):
        raise PermissionError("the request is not sealed with this run's token")
    content = json.loads(body)
    del content["nonce"]
    return content, _sign(token, "answer", body)


def _sign(token: str, purpose: str, body: str) -> str:
    return hmac.new(token.encode(), f"{purpose} {body}".encode(), "sha256").hexdigest()


class Endpoints:
    """Where a run's actors can be reached: small files in the run's folder, so that a successor is found again.

    They are named by the token, so that an actor of an earlier agent that comes late changes nothing.

    Args:
        folder: of one run, reachable from every node; private to the user.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def create(self) -> None:
        """Make a new token; endpoints that were published before are of no use any more."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = self._folder / "token.new"
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        temporary.rename(self._folder / "token")
        for old in self._folder.glob("actor-*.json"):
            old.unlink(missing_ok=True)

    @property
    def token(self) -> str:
        """What whoever asks an actor must know."""
        return (self._folder / "token").read_text()

    def publish(self, number: int, address: str, token: str) -> None:
        """Say where an actor listens that serves those who know ``token``."""
        write_json(self._path(number, token), {"address": address, "pid": os.getpid()})

    def find(self, number: int) -> str | None:
        """Where an actor listens, ``host:port``; None when it has not said so yet."""
        try:
            return str(read_json(self._path(number, self.token))["address"])
        except (CorruptFileError, FileNotFoundError):
            return None

    def _path(self, number: int, token: str) -> Path:
        return self._folder / f"actor-{number}-{_sign(token, 'endpoint', '')[:8]}.json"


def to_arrow(columns: dict[str, npt.NDArray[Any]]) -> pa.RecordBatch:
    """Columns of numbers as a record batch."""
    return pa.record_batch({name: array_of(values) for name, values in columns.items()})


def from_arrow(batch: pa.RecordBatch) -> Columns:
    """Inverse of `to_arrow`; copies, because what arrives can be neither written nor is it aligned."""
    return {name: numbers_of(batch.column(name)).copy() for name in batch.schema.names}
