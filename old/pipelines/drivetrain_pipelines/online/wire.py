"""The protocol between transforming actors and ranks: endpoints, sealed requests, batches."""

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
from drivetrain_pipelines.storage.json_files import JsonObject, read_json, write_json
from drivetrain_pipelines.stream.columns import Columns

_MAX_CHARACTERS = 2000  # gRPC sends it in a header, which is limited to 16 KiB


@dataclass(frozen=True)
class Ticket:
    """Request for every ``every``-th global batch from position ``start``, and for some rows of each.

    Attributes:
        start: global position of the first sample.
        first_row, last_row: rows of the global batch; ``last_row`` is not included.
    """

    start: int
    every: int
    global_batch: int
    first_row: int
    last_row: int


@dataclass(frozen=True)
class Refusal:
    """The reason why an actor that is alive cannot serve.

    Attributes:
        error: name of the Drivetrain error class.
    """

    error: str
    message: str

    def encode(self) -> bytes:
        """Encode as JSON, which is ASCII."""
        return json.dumps({"error": self.error, "message": self.message[:_MAX_CHARACTERS]}).encode()

    @classmethod
    def decode(cls, text: bytes) -> Refusal:
        """Decode the result of `encode`."""
        return cls(**json.loads(text))


def seal(token: str, content: JsonObject) -> tuple[bytes, str]:
    """Return a request that proves knowledge of the token without containing it, and the proof to expect in the answer.

    A server that has taken over a dead actor's port learns nothing from the request and cannot answer it.
    """
    body = json.dumps({**content, "nonce": secrets.token_hex(16)})
    request = {"body": body, "seal": _sign(token, "request", body)}
    return json.dumps(request).encode(), _sign(token, "answer", body)


def unseal(token: str, request: bytes) -> tuple[JsonObject, str]:
    """Return the content of a request and the proof to send back.

    Raises:
        PermissionError: the sender does not know the token.
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
    """Addresses of a run's actors: small files in the run's folder, so that a restarted actor is found again.

    The token is part of their names, so a late actor of an earlier agent has no effect.

    Args:
        folder: folder of one run, reachable from every node; private to the user.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def create(self) -> None:
        """Create a new token. Endpoints published before become invalid."""
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
        """Token that clients of the actors must know."""
        return (self._folder / "token").read_text()

    def publish(self, number: int, address: str, token: str) -> None:
        """Publish the address of an actor that serves clients with ``token``."""
        write_json(self._path(number, token), {"address": address, "pid": os.getpid()})

    def find(self, number: int) -> str | None:
        """Return the address of an actor, ``host:port``, or None when it is not published yet."""
        try:
            return str(read_json(self._path(number, self.token))["address"])
        except (CorruptFileError, FileNotFoundError):
            return None

    def _path(self, number: int, token: str) -> Path:
        return self._folder / f"actor-{number}-{_sign(token, 'endpoint', '')[:8]}.json"


def to_arrow(columns: dict[str, npt.NDArray[Any]]) -> pa.RecordBatch:
    """Convert columns of numbers to a record batch."""
    return pa.record_batch({name: array_of(values) for name, values in columns.items()})


def from_arrow(batch: pa.RecordBatch) -> Columns:
    """Convert the result of `to_arrow` back. Copies, because received buffers are read-only and not aligned."""
    return {name: numbers_of(batch.column(name)).copy() for name in batch.schema.names}
