"""Copies in another node's memory: two agents' sides, without agents."""

from __future__ import annotations

from pathlib import Path

import pytest
from drivetrain_pipelines.storage.json_files import read_json, write_json
from drivetrain_workers.agent import peers
from drivetrain_workers.agent.peers import CopyPiece, PeerCopies, StoredCopy
from drivetrain_workers.checkpoints.memory_copies import MemoryCopies
from drivetrain_workers.records.run_folder import CheckpointId

RANK = 1
CONTENT = bytes(range(256)) * 10


class Node:
    """One node, used by another; dead while `alive` is False, and breaks after `pieces_left` pieces."""

    def __init__(self, folder: Path) -> None:
        self.copies = MemoryCopies(folder)
        self.alive, self.pieces_left = True, 1 << 30
        self.side = PeerCopies(self.copies, self.find)
        self.successor: Node | None = None

    def find(self) -> Node:
        assert self.successor
        if not self.successor.alive:
            raise ConnectionError("it is dead")
        return self.successor

    def newest_copy(self, rank: int) -> StoredCopy | None:
        return self.side.newest(rank)

    def read_copy(self, checkpoint: CheckpointId, rank: int, offset: int) -> bytes:
        self._cut()
        return self.side.read(checkpoint, rank, offset)

    def receive_copy(self, piece: CopyPiece) -> None:
        self._cut()
        self.side.receive(piece)

    def make(self, step: int, content: bytes = CONTENT) -> CheckpointId:
        checkpoint = CheckpointId(step, 1)
        state, index = self.copies.paths(checkpoint, RANK)
        self.copies.prepare_write(checkpoint, RANK)
        state.write_bytes(content)
        write_json(index, {"bytes": len(content), "step": step})
        return checkpoint

    def has(self) -> dict[int, bytes]:
        completed = self.copies.completed(RANK)
        return {c.step: self.copies.paths(c, RANK)[0].read_bytes() for c in completed}

    def _cut(self) -> None:
        self.pieces_left -= 1
        if self.pieces_left < 0:
            raise ConnectionError("cut")


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Node, Node]:
    monkeypatch.setattr(peers, "_CHUNK_BYTES", 1000)  # three pieces
    here, there = Node(tmp_path / "here"), Node(tmp_path / "there")
    here.successor, there.successor = there, here
    return here, there


def test_a_copy_arrives_completely(pair: tuple[Node, Node]) -> None:
    here, there = pair
    here.side.send(here.make(8), RANK)
    here.side.send_next()
    assert there.has() == {8: CONTENT}
    index = there.copies.paths(CheckpointId(8, 1), RANK)[1]
    assert read_json(index) == {"bytes": len(CONTENT), "step": 8}


@pytest.mark.parametrize("size", [0, 999, 1000, 1001, 3000])
def test_any_size_arrives(pair: tuple[Node, Node], size: int) -> None:
    here, there = pair
    here.side.send(here.make(8, CONTENT[:size]), RANK)
    here.side.send_next()
    assert there.has() == {8: CONTENT[:size]}


def test_the_newest_copy_is_sent_if_several_wait(pair: tuple[Node, Node]) -> None:
    here, there = pair
    for step in (8, 16):
        here.side.send(here.make(step), RANK)
    here.side.send_next()
    assert there.has() == {16: CONTENT}


def test_a_partial_copy_is_not_used(pair: tuple[Node, Node]) -> None:
    here, there = pair
    there.pieces_left = 2
    here.side.send(here.make(8), RANK)
    here.side.send_next()
    assert there.has() == {}
    there.pieces_left = 10
    here.side.send(here.make(16), RANK)
    here.side.send_next()
    assert there.has() == {16: CONTENT}


def test_a_dead_peer_does_not_stop_the_node(pair: tuple[Node, Node]) -> None:
    here, there = pair
    there.alive = False
    here.side.send(here.make(8), RANK)
    here.side.send_next()
    here.side.recover([RANK])
    assert here.has() == {8: CONTENT}


def test_a_node_that_lost_its_memory_recovers_it(pair: tuple[Node, Node]) -> None:
    here, there = pair
    there.make(8)
    here.side.recover([RANK])
    assert here.has() == {8: CONTENT}


def test_existing_copies_are_not_fetched(pair: tuple[Node, Node]) -> None:
    here, there = pair
    here.make(16, b"newer")
    there.make(8)
    there.pieces_left = 0
    here.side.recover([RANK])
    assert here.has() == {16: b"newer"}


def test_an_interrupted_recovery_leaves_no_partial_copy(pair: tuple[Node, Node]) -> None:
    here, there = pair
    there.make(8)
    there.pieces_left = 2
    here.side.recover([RANK])
    assert here.has() == {}


def test_a_run_that_has_ended_stores_no_copies(pair: tuple[Node, Node]) -> None:
    here, there = pair
    there.side.close()
    here.side.send(here.make(8), RANK)
    here.side.send_next()
    assert there.has() == {}
