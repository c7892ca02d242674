"""A node's cache of remote shards: bounded in bytes, shared by the node's ranks, safe against kills.

A file in the folder under its own name has been verified. Users of a file hold a shared lock on it, and it is never
evicted while locked; the kernel releases the lock of a dead process. The modification time is the time of the last
prefetch request, so the oldest file is the one that is needed last.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.storage.fetch import Fetcher
from drivetrain_pipelines.storage.shards import Shard

_DOWNLOADS = 4  # files in parallel; the blocks of each file are parallel too
_SPACE_TIMEOUT_S = 30.0  # for other ranks to release shards
_POLL_INTERVAL_S = 0.05
_PART, _GUARD, _EVICTION = ".part", ".lock", ".eviction.lock"


class CachedFiles:
    """Shards of one dataset version, prefetched in the order in which they are needed.

    Args:
        folder: cache of this dataset version on this node.
        base_url: remote folder of the shards.
        shards: shards of the split.
        fetcher: fetcher for the remote storage; closed with this object.
        limit_bytes: limit for all files in ``folder``.
        readers: readers of the split on this node; each prefetches within its part of the cache.
    """

    def __init__(
        self, folder: Path, base_url: str, shards: Sequence[Shard], fetcher: Fetcher, limit_bytes: int, readers: int = 1
    ) -> None:
        self._folder, self._base_url, self._shards, self._fetcher = folder, base_url, shards, fetcher
        self._limit = limit_bytes
        self.prefetch_bytes = limit_bytes // 2 // readers  # the other half is in use
        self._pool = ThreadPoolExecutor(_DOWNLOADS, thread_name_prefix="cache")
        self._lock = threading.Lock()
        self._downloads: dict[int, Future[None]] = {}
        self._locked: dict[int, int] = {}  # file descriptor by shard
        self._closing = False
        folder.mkdir(parents=True, exist_ok=True)

    def prefetch(self, numbers: Sequence[int]) -> None:
        """See `ShardFiles`."""
        for number in numbers:
            with suppress(FileNotFoundError):
                os.utime(self._path(number))
                continue
            self._start_download(number, wait_for_space=False)

    def acquire(self, number: int) -> Path:
        """See `ShardFiles`.

        Raises:
            FetchError: storage was unavailable for longer than the retry deadline.
            InputError: the cache cannot hold the shards that are needed at the same time.
        """
        while (descriptor := self._lock_file(number)) is None:
            self._start_download(number, wait_for_space=True).result()
        self._locked[number] = descriptor
        return self._path(number)

    def release(self, number: int) -> None:
        """See `ShardFiles`."""
        os.close(self._locked.pop(number))

    def discard(self, number: int) -> None:
        """See `ShardFiles`."""
        self._path(number).unlink(missing_ok=True)
        self.release(number)

    def stop(self) -> None:
        """See `ShardFiles`."""
        self._closing = True
        self._fetcher.close()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """See `ShardFiles`."""
        self.stop()
        for number in list(self._locked):
            self.release(number)

    def _path(self, number: int) -> Path:
        return self._folder / self._shards[number].file

    def _lock_file(self, number: int) -> int | None:
        """Open a file and lock it against eviction. Returns the descriptor, or None when the file is missing."""
        path = self._path(number)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # evicted between the two calls
        return None

    def _start_download(self, number: int, wait_for_space: bool) -> Future[None]:
        with self._lock:
            download = self._downloads.get(number)
            if download is None or download.done():
                download = self._downloads[number] = self._pool.submit(self._download, number, wait_for_space)
            return download

    def _download(self, number: int, wait_for_space: bool) -> None:
        """Fetch a shard unless another rank of this node has fetched it, or is fetching it."""
        path, shard = self._path(number), self._shards[number]
        part = path.with_name(f".{path.name}{_PART}")
        with FileLock(part.with_suffix(_GUARD)):
            if path.exists() or not self._reserve(part, shard.bytes, wait_for_space):
                return
            try:
                self._fetcher.fetch(f"{self._base_url}/{shard.file}", shard.xxh3, part)
                with FileLock(self._folder / _EVICTION):  # otherwise a process that counts the bytes could miss it
                    part.rename(path)
            except BaseException:
                part.unlink()
                raise

    def _reserve(self, part: Path, size: int, wait: bool) -> bool:
        """Reserve space for a file of ``size`` bytes. A prefetch does not wait for space, an acquisition does."""
        deadline = time.monotonic() + _SPACE_TIMEOUT_S
        while not self._evict_for(part, size):
            if not wait or self._closing:
                return False
            if time.monotonic() > deadline:
                in_use = f"{self._limit} bytes, all in use"
                raise InputError("data.cache_bytes", in_use, f"room for {size} bytes more", "Raise it, or lower lanes.")
            time.sleep(_POLL_INTERVAL_S)
        return True

    def _evict_for(self, part: Path, size: int) -> bool:
        """Evict the files that are needed last until ``size`` more bytes fit, and allocate them to ``part``."""
        with FileLock(self._folder / _EVICTION):
            files = []
            for path in self._folder.iterdir():
                with suppress(FileNotFoundError):
                    status = path.stat()
                    files.append((status.st_mtime_ns, status.st_size, path))
            total = sum(bytes_ for _, bytes_, _ in files)
            for _, bytes_, path in sorted(files):
                if total + size > self._limit and bytes_ and _remove_unless_used(path):
                    total -= bytes_
            if total + size > self._limit:
                return False
            with part.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)
            return True


def _remove_unless_used(path: Path) -> bool:
    """Remove a file unless it is in use: readers lock a shard, a downloader locks the guard of a part."""
    lock = path.with_suffix(_GUARD) if path.suffix == _PART else path
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:  # a part that became a shard since it was listed
        return False
    finally:
        os.close(descriptor)
    return True
