"""Downloads of whole files from object storage: blocks in parallel, each verified by its checksum and retried.

S3 clients do not detect a flipped bit, and few detect a truncated body; the checksum in the manifest decides.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tenacity
import xxhash

from drivetrain_pipelines.errors import FetchError, WrongBytesError
from drivetrain_pipelines.storage.access import access_problem, accessing
from drivetrain_pipelines.storage.checksums import BLOCK_BYTES
from drivetrain_pipelines.user_code import describe


@dataclass(frozen=True)
class RetryPolicy:
    """Limits for the attempts to fetch a block.

    Attributes:
        deadline_s: from the first attempt; a shorter outage causes no failure.
        initial_delay_s: upper bound of the first delay; it doubles, and each delay is random below its bound.
        max_delay_s: upper bound of all delays.
        max_wrong_answers: answers with wrong bytes, after which the copy in storage counts as corrupt.
    """

    deadline_s: float = 300.0
    initial_delay_s: float = 0.1
    max_delay_s: float = 5.0
    max_wrong_answers: int = 8


class ChecksumError(OSError):
    """The received bytes do not have the checksum of the written ones."""


class _StopAfterWrongBytes(tenacity.stop.stop_base):
    """Stops when storage has answered with wrong bytes ``limit`` times."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        self._left -= bool(retry_state.outcome and isinstance(retry_state.outcome.exception(), ChecksumError))
        return self._left <= 0


def _is_temporary(url: str, error: BaseException) -> bool:
    """Check whether another attempt may help: after any error of the client but two."""
    return not isinstance(error, FileNotFoundError) and access_problem(url, error) is None


class Fetcher:
    """Downloads from one fsspec file system; safe to use from many threads.

    Args:
        filesystem: fsspec file system of the remote storage.
        connections: number of blocks in flight.
        policy: retry policy of each block.
    """

    def __init__(self, filesystem: Any, connections: int = 8, policy: RetryPolicy | None = None) -> None:
        self._filesystem, self._connections, self._policy = filesystem, connections, policy or RetryPolicy()
        self._pool = ThreadPoolExecutor(connections, thread_name_prefix="fetch")
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self.counters: Counter[str] = Counter()

    def fetch(self, url: str, digests: list[str], target: Path, progress: Callable[[], None] = lambda: None) -> None:
        """Fill ``target``, which already has its full size, from a remote file, and verify every block.

        Args:
            progress: called after each block.

        Raises:
            FetchError: a block could not be fetched within the deadline; names file, block and the last error.
            WrongBytesError: storage holds wrong bytes, or no such file.
            InputError: storage wants other credentials.
        """
        in_flight: deque[tuple[int, Future[bytes]]] = deque()  # only a few: a file may be larger than memory
        with target.open("r+b", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size

            def write_first() -> None:
                number, block = in_flight.popleft()
                os.pwrite(file.fileno(), block.result(), number * BLOCK_BYTES)
                progress()

            try:
                for number, digest in enumerate(digests):
                    length = min(BLOCK_BYTES, size - number * BLOCK_BYTES)
                    in_flight.append((number, self._pool.submit(self._block, url, number, length, digest)))
                    if len(in_flight) == 2 * self._connections:
                        write_first()
                while in_flight:
                    write_first()
                os.fsync(file.fileno())  # a name in the cache must not outlive its bytes
            finally:
                for _, block in in_flight:
                    block.cancel()

    def close(self) -> None:
        """Cancel all fetches in progress."""
        self._closing.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _block(self, url: str, number: int, length: int, digest: str) -> bytes:
        policy, began = self._policy, time.monotonic()
        retrying = tenacity.Retrying(
            wait=tenacity.wait_random_exponential(policy.initial_delay_s, policy.max_delay_s),
            stop=tenacity.stop_any(
                _StopAfterWrongBytes(policy.max_wrong_answers),
                tenacity.stop_after_delay(policy.deadline_s),
                tenacity.stop_when_event_set(self._closing),
            ),
            sleep=tenacity.sleep_using_event(self._closing),
            retry=tenacity.retry_if_exception(lambda error: _is_temporary(url, error)),
            before_sleep=lambda _: self._count("retries"),
            reraise=False,
        )
        try:
            with accessing(url):
                return retrying(self._attempt, url, number, length, digest)
        except FileNotFoundError as error:
            raise WrongBytesError(url, number, "there is no such file") from error
        except tenacity.RetryError as error:
            attempts, last = error.last_attempt.attempt_number, error.last_attempt.exception()
            assert last
            problem = f"{attempts} attempts in {time.monotonic() - began:.0f} s, the last: {describe(last)}"
            kind = WrongBytesError if isinstance(last, ChecksumError) else FetchError
            raise kind(url, number, problem) from last

    def _attempt(self, url: str, number: int, length: int, digest: str) -> bytes:
        self._count("requests")
        start = number * BLOCK_BYTES
        data: bytes = self._filesystem.cat_file(url, start=start, end=start + length)
        if len(data) != length:
            self._count("truncated")
            raise OSError(f"{len(data)} of {length} bytes received")
        if xxhash.xxh3_64_hexdigest(data) != digest:
            self._count("corrupt")
            raise ChecksumError("the received bytes do not have the checksum of the written ones")
        self._count("bytes", length)
        return data

    def _count(self, what: str, amount: int = 1) -> None:
        with self._lock:
            self.counters[what] += amount
