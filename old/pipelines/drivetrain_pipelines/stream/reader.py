"""The stream of a split to one rank: order, prefetch, gather, hand over."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from drivetrain_pipelines.errors import CorruptFileError
from drivetrain_pipelines.order.mixture import SampleOrder
from drivetrain_pipelines.order.permutation import Int64Array
from drivetrain_pipelines.stream.address_range import keep_freed_memory
from drivetrain_pipelines.stream.arena import ShardArena
from drivetrain_pipelines.stream.columns import Allocate, Columns, Values
from drivetrain_pipelines.stream.files import ShardFiles

_PLAN_SAMPLES = 16_384  # located in one pass, so that numpy's cost per call is negligible
_PLAN_BYTES = 64 << 20  # all shards of a plan must be mapped at the same time
_PREFETCH_BATCHES = 2  # batches that the thread gathers while the consumer computes
_BUFFERS = _PREFETCH_BATCHES + 1  # and one in use
_MIN_IDLE_S = 5e-4  # a consumer that returns sooner gathers itself: waking a thread would cost more than it saves
_MAX_PLANS = 4096  # upper bound of the look-ahead


@dataclass(slots=True)  # not frozen: creating a frozen instance takes three times as long
class Batch:
    """One rank's rows of one global batch.

    Attributes:
        position: global position of the first sample of the global batch.
        columns: arrays ``[rows, ...]``, or `Ragged`; valid until the next batch is taken.
    """

    position: int
    columns: Columns
    buffers: dict[str, Values | None] = field(repr=False)


@dataclass(frozen=True)
class _Plan:
    """The samples of some consecutive batches."""

    position: int
    shards: Int64Array
    rows: Int64Array
    needed: tuple[int, ...]  # shards in order of need


class StreamReader:
    """Endless shuffled batches of one rank, gathered into reused buffers.

    While the consumer computes, a thread prefetches. A consumer that returns without delay gathers by itself. The two
    never gather at the same time, so the order of batches needs no lock.

    Args:
        arena: rows of the split; this reader maps its shards and unmaps those it does not need soon. Close it
            after the reader.
        files: files of the split's shards.
        order: maps positions to samples.
        global_batch: samples per step over all ranks.
        rows: this rank's slice of the global batch.
        start: global position of the first sample; any position costs the same.
        every: deliver each global batch, or only every n-th.
        allocate: makes the arrays that batches of numbers are gathered into.
    """

    def __init__(
        self,
        arena: ShardArena,
        files: ShardFiles,
        order: SampleOrder,
        global_batch: int,
        rows: slice,
        start: int,
        every: int = 1,
        allocate: Allocate = np.zeros,
    ) -> None:
        keep_freed_memory()
        self._arena, self._files, self._order = arena, files, order
        self._global_batch, self._rows, self._stride = global_batch, rows, every * global_batch
        self._own = rows.stop - rows.start
        self._next_plan, self._plans = start, deque[_Plan]()
        batch_bytes = max(1, arena.bytes_per_row * self._own)
        self._batches_per_plan = max(1, min(_PLAN_SAMPLES // max(1, self._own), _PLAN_BYTES // batch_bytes))
        self._batches = self._gather()
        self._free = [arena.buffers(self._own, allocate) for _ in range(_BUFFERS)]
        self._requests: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[Batch | Exception] = queue.SimpleQueue()
        self._requested = 0  # batches that the thread was asked for and that are not taken yet
        self._thread = threading.Thread(target=self._work, name="stream-reader", daemon=True)
        self._thread.start()
        self._request_batches()

    def __iter__(self) -> Iterator[Batch]:
        while True:
            batch = self._take_prefetched() if self._requested else next(self._batches)
            yielded = time.perf_counter()
            yield batch
            self._free.append(batch.buffers)
            if time.perf_counter() - yielded > _MIN_IDLE_S:
                self._request_batches()

    def close(self) -> None:
        """Stop the thread and release all files."""
        self._requests.put(False)
        self._files.stop()
        self._thread.join()
        self._files.close()

    def _take_prefetched(self) -> Batch:
        batch = self._ready.get()
        self._requested -= 1
        if isinstance(batch, Exception):
            raise batch
        return batch

    def _request_batches(self) -> None:
        while self._requested < _PREFETCH_BATCHES:
            self._requested += 1
            self._requests.put(True)

    def _work(self) -> None:
        while self._requests.get():
            try:
                self._ready.put(next(self._batches))
            except Exception as error:  # the consumer raises it
                self._ready.put(error)
                return

    def _gather(self) -> Iterator[Batch]:
        """Yield the batches in order. The thread or the consumer advances this generator."""
        while True:
            plan = self._take_plan()
            index = self._arena.index(plan.shards, plan.rows)
            for number in range(self._batches_per_plan):
                buffers = self._free.pop()  # the last used one is still in the processor's cache
                part = slice(number * self._own, (number + 1) * self._own)
                columns = self._arena.gather(index, part, buffers)
                yield Batch(plan.position + number * self._stride, columns, buffers)

    def _take_plan(self) -> _Plan:
        """Return the next plan with its shards mapped, and make enough further plans to fetch files in time."""
        while not self._plans or (self._planned_bytes() < self._files.prefetch_bytes and len(self._plans) < _MAX_PLANS):
            plan = self._make_plan(self._next_plan)
            self._next_plan += self._batches_per_plan * self._stride
            self._plans.append(plan)
            self._files.prefetch(plan.needed)
            if len({number for p in self._plans for number in p.needed}) == self._arena.shards:
                break  # all shards: nothing is left to prefetch
        plan = self._plans.popleft()
        if self._files.prefetch_bytes:
            soon = {number for p in (plan, *self._plans) for number in p.needed}
            for number in self._arena.mapped - soon:
                self._arena.unmap_shard(number)
                self._files.release(number)
        for number in plan.needed:
            if number not in self._arena.mapped:
                self._map(number)
        return plan

    def _map(self, number: int) -> None:
        """Map a shard. A corrupt copy in the node's cache is fetched again, once."""
        try:
            self._arena.map_shard(number, self._files.acquire(number))
        except CorruptFileError:
            self._files.discard(number)
            self._arena.map_shard(number, self._files.acquire(number))

    def _planned_bytes(self) -> int:
        return self._arena.bytes_of({number for plan in self._plans for number in plan.needed})

    def _make_plan(self, position: int) -> _Plan:
        pattern = self._order.positions(0, self._global_batch, self._rows)
        starts = position + self._stride * np.arange(self._batches_per_plan, dtype=np.int64)
        shards, rows = self._order.locate((starts[:, None] + pattern).reshape(-1))
        if self._files.prefetch_bytes:
            numbers, first = np.unique(shards, return_index=True)
            numbers = numbers[np.argsort(first)]
        else:  # nothing to fetch, so the order does not matter
            numbers = np.flatnonzero(np.bincount(shards))
        return _Plan(position, shards, rows, tuple(numbers.tolist()))
