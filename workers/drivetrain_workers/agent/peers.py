"""Copies in another node's memory: every agent keeps copies of its predecessor's ranks, in case that node fails."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from drivetrain_pipelines.errors import DrivetrainError
from drivetrain_pipelines.storage.json_files import JsonObject, read_json, write_json

from drivetrain_workers.checkpoints.memory_copies import MemoryCopies
from drivetrain_workers.records.run_folder import CheckpointId

_log = logging.getLogger(__name__)
_CHUNK_BYTES = 64 << 20  # size of one call, so that Ray's object store never holds a whole state
_PEER_ERRORS = (OSError, DrivetrainError)


@dataclass(frozen=True)
class StoredCopy:
    """A copy of a rank's state in a node's memory."""

    checkpoint: CheckpointId
    index: JsonObject


@dataclass(frozen=True)
class CopyPiece:
    """A chunk of a copy that is sent to another node.

    Attributes:
        offset: byte of the state at which ``chunk`` begins.
        index: index of the whole copy; only with its last chunk.
    """

    checkpoint: CheckpointId
    rank: int
    offset: int
    chunk: bytes
    index: JsonObject | None = None


class Peer(Protocol):
    """The agent that keeps copies of this one's ranks. Its methods raise OSError or DrivetrainError."""

    def newest_copy(self, rank: int) -> StoredCopy | None:
        """Return the newest copy of a rank in its memory."""

    def read_copy(self, checkpoint: CheckpointId, rank: int, offset: int) -> bytes:
        """Return a chunk of a copy in its memory."""

    def receive_copy(self, piece: CopyPiece) -> None:
        """Store a chunk of a copy in its memory."""


class PeerCopies:
    """Sends the copies of this node's ranks to its successor, and keeps those of its predecessor.

    Args:
        copies: copies on this node.
        find_successor: finds the agent that keeps copies of this one's ranks.
    """

    def __init__(self, copies: MemoryCopies, find_successor: Callable[[], Peer]) -> None:
        self._copies, self._find_successor = copies, find_successor
        self._changed = threading.Condition()
        self._to_send: dict[int, CheckpointId] = {}  # by rank; a newer one replaces an older one
        self._closed = False

    def start(self) -> None:
        """Start a thread that sends copies."""
        threading.Thread(target=self._send_all, name="peers", daemon=True).start()

    def send(self, checkpoint: CheckpointId, rank: int) -> None:
        """Queue a copy that a rank of this node has made for the successor."""
        with self._changed:
            self._to_send[rank] = checkpoint
            self._changed.notify()

    def send_next(self) -> None:
        """Wait for a copy, and try to send it."""
        with self._changed:
            self._changed.wait_for(lambda: self._to_send)
            rank, checkpoint = self._to_send.popitem()
        try:
            self._send(checkpoint, rank)
        except _PEER_ERRORS as error:  # the peer is being replaced, or the copy was
            _log.warning("copy of rank %d at step %d was not stored by a peer: %s", rank, checkpoint.step, error)

    def close(self) -> None:
        """Stop storing copies: the run has ended."""
        self._closed = True

    def receive(self, piece: CopyPiece) -> None:
        """Store a chunk of another node's copy."""
        if self._closed:
            return
        state, index_path = self._copies.paths(piece.checkpoint, piece.rank)
        if piece.offset == 0:
            self._copies.prepare_write(piece.checkpoint, piece.rank)
        with _partial_path(state).open("r+b" if piece.offset else "wb") as file:
            file.seek(piece.offset)
            file.write(piece.chunk)
        if piece.index is not None:
            _partial_path(state).rename(state)
            write_json(index_path, piece.index)

    def newest(self, rank: int) -> StoredCopy | None:
        """Return the newest copy of a rank in this node's memory."""
        for checkpoint in self._copies.completed(rank):
            return StoredCopy(checkpoint, read_json(self._copies.paths(checkpoint, rank)[1]))
        return None

    def read(self, checkpoint: CheckpointId, rank: int, offset: int) -> bytes:
        """Return a chunk of a copy in this node's memory."""
        state, _ = self._copies.paths(checkpoint, rank)
        with state.open("rb") as file:
            file.seek(offset)
            return file.read(_CHUNK_BYTES)

    def recover(self, ranks: Iterable[int]) -> None:
        """Try to fetch copies of ``ranks`` that are newer than this node's from the successor."""
        for rank in ranks:
            try:
                self._recover(rank)
            except _PEER_ERRORS as error:  # storage has an older state
                _log.warning("no copy of rank %d from the successor: %s", rank, error)

    def _recover(self, rank: int) -> None:
        peer = self._find_successor()
        found = peer.newest_copy(rank)
        if found is None or any(own >= found.checkpoint for own in self._copies.completed(rank)):
            return
        for offset in _offsets(found.index["bytes"]):
            chunk = peer.read_copy(found.checkpoint, rank, offset)
            last = offset + len(chunk) >= found.index["bytes"]
            self.receive(CopyPiece(found.checkpoint, rank, offset, chunk, found.index if last else None))

    def _send_all(self) -> None:
        while True:
            self.send_next()

    def _send(self, checkpoint: CheckpointId, rank: int) -> None:
        peer = self._find_successor()
        state, index_path = self._copies.paths(checkpoint, rank)
        index = read_json(index_path)
        with state.open("rb") as file:
            for offset in _offsets(index["bytes"]):
                last = offset + _CHUNK_BYTES >= index["bytes"]
                piece = CopyPiece(checkpoint, rank, offset, file.read(_CHUNK_BYTES), index if last else None)
                peer.receive_copy(piece)


def _offsets(size: int) -> range:
    return range(0, max(1, size), _CHUNK_BYTES)


def _partial_path(state: Path) -> Path:
    return state.with_suffix(".part")
