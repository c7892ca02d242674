"""Copies in another node's memory: every agent keeps those of the agent before it, for when that one's node dies."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ray
from drivetrain_pipelines.errors import DrivetrainError
from drivetrain_pipelines.storage.checksums import read_json, write_json

from drivetrain_workers.checkpoints.memory_copies import MemoryCopies
from drivetrain_workers.records.run_folder import CheckpointId

_log = logging.getLogger(__name__)
_CHUNK_BYTES = 64 << 20  # of which each call carries one, so that Ray's object store holds no whole state
_TROUBLE = (ValueError, OSError, DrivetrainError, ray.exceptions.RayError)  # no such actor, file, or connection
_FETCH_S = 60.0  # for a chunk; what is slower is left to storage


class PeerCopies:
    """One agent's side: sends its ranks' copies to its successor, and keeps those of its predecessor.

    Args:
        copies: on this node.
        successor: name of the agent that keeps copies of this one's ranks.
    """

    def __init__(self, copies: MemoryCopies, successor: str) -> None:
        self._copies, self._successor = copies, successor
        self._news = threading.Condition()
        self._to_send: dict[int, CheckpointId] = {}  # by rank; a newer one takes an older one's place
        self._closed = False
        threading.Thread(target=self._send_all, name="peers", daemon=True).start()

    def send(self, checkpoint: CheckpointId, rank: int) -> None:
        """A rank of this node has made a copy; the successor is to have it, too."""
        with self._news:
            self._to_send[rank] = checkpoint
            self._news.notify()

    def close(self) -> None:
        """The run has ended: keep nothing more."""
        self._closed = True

    def receive(self, step: int, generation: int, rank: int, offset: int, chunk: bytes, index: dict[str, Any]) -> None:
        """Keep a piece of another node's copy; with ``index`` it is the last."""
        if self._closed:
            return
        checkpoint = CheckpointId(step, generation)
        state, index_path = self._copies.paths(checkpoint, rank)
        if offset == 0:
            self._copies.make_room(checkpoint, rank)
        with _growing(state).open("r+b" if offset else "wb") as file:
            file.seek(offset)
            file.write(chunk)
        if index:
            _growing(state).rename(state)
            write_json(index_path, index)

    def newest(self, rank: int) -> tuple[int, int, dict[str, Any]] | None:
        """Step, generation and index of the newest copy of a rank that is here."""
        for checkpoint in self._copies.complete(rank):
            return checkpoint.step, checkpoint.generation, read_json(self._copies.paths(checkpoint, rank)[1])
        return None

    def read(self, step: int, generation: int, rank: int, offset: int) -> bytes:
        """A piece of a copy that is here."""
        state, _ = self._copies.paths(CheckpointId(step, generation), rank)
        with state.open("rb") as file:
            file.seek(offset)
            return file.read(_CHUNK_BYTES)

    def recover(self, ranks: Iterable[int]) -> None:
        """Bring back copies of ``ranks`` that are newer than this node's from the successor. Does what it can."""
        for rank in ranks:
            try:
                self._recover(rank)
            except _TROUBLE as error:  # storage has an older state
                _log.warning("no copy of rank %d from %s: %s", rank, self._successor, error)

    def _recover(self, rank: int) -> None:
        peer = ray.get_actor(self._successor)
        found: Any = ray.get(peer.newest_copy.remote(rank), timeout=_FETCH_S)
        if found is None:
            return
        step, generation, index = found
        if any(own >= CheckpointId(step, generation) for own in self._copies.complete(rank)):
            return
        for offset in _offsets(index["bytes"]):
            chunk = ray.get(peer.read_copy.remote(step, generation, rank, offset), timeout=_FETCH_S)
            last = offset + len(chunk) >= index["bytes"]
            self.receive(step, generation, rank, offset, chunk, index if last else {})

    def _send_all(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._to_send)
                rank, checkpoint = self._to_send.popitem()
            try:
                self._send(checkpoint, rank)
            except _TROUBLE as error:  # the peer is being replaced, or the copy already is
                _log.warning("copy of rank %d at step %d not kept by a peer: %s", rank, checkpoint.step, error)

    def _send(self, checkpoint: CheckpointId, rank: int) -> None:
        peer = ray.get_actor(self._successor)
        state, index_path = self._copies.paths(checkpoint, rank)
        index = read_json(index_path)
        with state.open("rb") as file:
            for offset in _offsets(index["bytes"]):
                last = offset + _CHUNK_BYTES >= index["bytes"]
                piece = (offset, file.read(_CHUNK_BYTES), index if last else {})
                ray.get(peer.receive_copy.remote(checkpoint.step, checkpoint.generation, rank, *piece))


def _offsets(size: int) -> range:
    return range(0, max(1, size), _CHUNK_BYTES)


def _growing(state: Path) -> Path:
    return state.with_suffix(".part")
