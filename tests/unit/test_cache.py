"""A node's cache of remote shards."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from drivetrain_pipelines.errors import InputError, WrongBytesError
from drivetrain_pipelines.storage.fetch import Fetcher, RetryPolicy
from drivetrain_pipelines.storage.shards import Shard
from drivetrain_pipelines.stream import cache
from drivetrain_pipelines.stream.cache import CachedFiles
from filelock import FileLock

from tests.unit.datasets import make_dataset


class Storage:
    """A file system that records reads, and can be made to wait."""

    def __init__(self) -> None:
        self.read: list[str] = []
        self.requested, self.open = threading.Semaphore(0), threading.Event()
        self.open.set()
        self._files = fsspec.filesystem("file")

    def cat_file(self, url: str, start: int, end: int) -> bytes:
        self.read.append(Path(url).name)
        self.requested.release()
        self.open.wait()
        content: bytes = self._files.cat_file(url, start=start, end=end)
        return content


class Node:
    """A dataset of four shards of the same size in storage, and the cache of a node."""

    def __init__(self, folder: Path) -> None:
        self.storage, self.remote, self.local = Storage(), folder / "remote", folder / "cache"
        self.shards: list[Shard] = make_dataset(self.remote, [7] * 4).manifest.splits["train"]
        self.size = max(shard.bytes for shard in self.shards)
        self._ranks: list[CachedFiles] = []

    def rank(self, room: int, readers: int = 1) -> CachedFiles:
        """Open the cache of a rank, with room for this many shards."""
        fetcher = Fetcher(self.storage, policy=RetryPolicy(initial_delay_s=0.0, max_delay_s=0.0, max_wrong_answers=1))
        files = CachedFiles(self.local, str(self.remote), self.shards, fetcher, room * self.size, readers)
        self._ranks.append(files)
        return files

    def age(self, *numbers: int) -> None:
        """Set old times of the last prefetch, oldest first."""
        for second, number in enumerate(numbers):
            os.utime(self.local / self.shards[number].file, (second, second))

    def cached(self) -> list[int]:
        return [number for number, shard in enumerate(self.shards) if (self.local / shard.file).exists()]

    def is_right(self, path: Path, number: int) -> bool:
        return path.read_bytes() == (self.remote / self.shards[number].file).read_bytes()

    def close(self) -> None:
        self.storage.open.set()
        for files in self._ranks:
            files.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.close()


def test_a_shard_is_fetched_once(node: Node) -> None:
    files = node.rank(room=4)
    for _ in range(2):
        path = files.acquire(1)
        assert path.parent == node.local
        assert node.is_right(path, 1)
        files.release(1)
    assert node.rank(room=4).acquire(1) == path
    assert node.storage.read == [node.shards[1].file]


def test_ranks_that_need_the_same_shard_at_the_same_time(node: Node) -> None:
    node.storage.open.clear()
    with ThreadPoolExecutor() as pool:
        acquired = [pool.submit(node.rank(room=4).acquire, 2) for _ in range(4)]
        node.storage.requested.acquire()
        assert node.cached() == []  # only complete and verified files have this name
        node.storage.open.set()
        assert len({future.result() for future in acquired}) == 1
    assert node.storage.read == [node.shards[2].file]


def test_shards_are_prefetched_in_order(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_DOWNLOADS", 1)
    files = node.rank(room=4)
    files.prefetch([3, 1])
    for _ in range(2):
        node.storage.requested.acquire()
    for number in (3, 1):
        assert node.is_right(files.acquire(number), number)
    assert node.storage.read == [node.shards[3].file, node.shards[1].file]


def test_half_of_the_cache_is_for_prefetching(node: Node) -> None:
    assert node.rank(room=4).prefetch_bytes == 2 * node.size
    assert node.rank(room=4, readers=2).prefetch_bytes == node.size


def test_the_oldest_prefetch_is_evicted_first(node: Node) -> None:
    files = node.rank(room=2)
    for number in (0, 1):
        files.acquire(number)
        files.release(number)
    node.age(1, 0)
    files.acquire(2)
    assert node.cached() == [0, 2]


def test_a_repeated_prefetch_is_not_evicted(node: Node) -> None:
    files = node.rank(room=2)
    for number in (0, 1):
        files.acquire(number)
        files.release(number)
    node.age(0, 1)
    files.prefetch([0])
    files.acquire(2)
    assert node.cached() == [0, 2]


def test_shards_in_use_are_not_evicted(node: Node) -> None:
    files, other = node.rank(room=2), node.rank(room=2)
    other.acquire(0)
    files.acquire(1)
    files.release(1)
    node.age(0, 1)
    files.acquire(2)
    assert node.cached() == [0, 2]
    other.close()  # releases its shards
    files.acquire(3)
    assert node.cached() == [2, 3]


def test_a_cache_that_is_too_small(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_SPACE_TIMEOUT_S", 0.0)
    files = node.rank(room=2)
    for number in (0, 1):
        files.acquire(number)
    with pytest.raises(InputError, match=f"room for {node.shards[2].bytes} bytes more") as caught:
        files.acquire(2)
    assert (caught.value.where, caught.value.given) == ("data.cache_bytes", f"{2 * node.size} bytes, all in use")
    files.release(0)
    assert node.is_right(files.acquire(2), 2)


def test_acquiring_waits_for_space(node: Node) -> None:
    files, other = node.rank(room=2), node.rank(room=2)
    for number in (0, 1):
        other.acquire(number)
    with ThreadPoolExecutor() as pool:
        needed = pool.submit(files.acquire, 2)
        other.release(1)
        assert node.is_right(needed.result(), 2)
    assert node.cached() == [0, 2]


def test_stopping_ends_the_wait_for_space(node: Node) -> None:
    files = node.rank(room=1)
    files.acquire(0)
    with ThreadPoolExecutor() as pool:
        needed = pool.submit(files.acquire, 1)
        files.stop()
        assert needed.exception() is not None
    assert node.cached() == [0]


def test_a_corrupt_local_file_is_fetched_again(node: Node) -> None:
    files = node.rank(room=4)
    path = files.acquire(0)
    path.write_bytes(b"damaged")
    files.discard(0)
    assert node.is_right(files.acquire(0), 0)
    assert node.storage.read == [node.shards[0].file] * 2
    files.release(0)


def test_a_file_that_is_corrupt_in_storage_is_not_kept(node: Node) -> None:
    remote = node.remote / node.shards[0].file
    whole = remote.read_bytes()
    remote.write_bytes(whole[:-1] + b"?")
    files = node.rank(room=1)
    with pytest.raises(WrongBytesError, match=r"train-00000\.arrow"):
        files.acquire(0)
    assert not [path for path in node.local.iterdir() if path.stat().st_size]
    remote.write_bytes(whole)
    assert node.is_right(files.acquire(0), 0)


@pytest.mark.parametrize("alive", [False, True])
def test_the_partial_file_of_a_dead_process_is_removed(
    node: Node, monkeypatch: pytest.MonkeyPatch, alive: bool
) -> None:
    monkeypatch.setattr(cache, "_SPACE_TIMEOUT_S", 0.0)
    files = node.rank(room=1)
    part = node.local / ".train-00003.arrow.part"
    part.write_bytes(bytes(node.size))
    guard = FileLock(part.with_suffix(".lock"))
    with guard:
        if alive:
            with pytest.raises(InputError, match=r"data\.cache_bytes"):
                files.acquire(0)
            assert part.exists()
    if not alive:
        assert node.is_right(files.acquire(0), 0)
        assert not part.exists()
