"""Streaming a split to one rank: order, look ahead, gather, hand over."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from drivetrain_pipelines.order.mixture import SampleOrder
from drivetrain_pipelines.order.permutation import Int64Array
from drivetrain_pipelines.stream.arena import ShardArena
from drivetrain_pipelines.stream.columns import Columns, Values
from drivetrain_pipelines.stream.files import ShardFiles

_PLAN_SAMPLES = 8192  # located in one pass: numpy's cost per call is then no matter
_PLAN_BYTES = 64 << 20  # the shards of a plan must be there all at once
_BLOCK_BYTES = 1 << 20  # handed over together: waking the consumer for every small batch would cost more than gathering
_RING = 4  # blocks: one in use, one just released, two ahead
_LARGEST_PLANS = 4096  # however far the look-ahead reaches


@dataclass(frozen=True)
class Batch:
    """One rank's rows of one global batch.

    Attributes:
        position: global position of the global batch's first sample.
        columns: arrays ``[rows, ...]``, or `Ragged`; valid until the batch after the next one is taken.
    """

    position: int
    columns: Columns


@dataclass(frozen=True)
class _Plan:
    """The samples of some consecutive batches."""

    position: int
    shards: Int64Array
    rows: Int64Array
    needed: tuple[int, ...]  # shards in order of need


_Block = tuple[list[Batch], list[dict[str, Values | None]]]


class StreamReader:
    """Endless shuffled batches of one rank, gathered ahead by a thread into reused buffers.

    Args:
        arena: of the split; this reader maps its shards and unmaps what it does not need soon. Stays open until after
            `close`.
        files: of the split's shards.
        order: position to sample.
        global_batch: samples per step over all ranks.
        rows: this rank's slice of the global batch.
        start: global position to begin at; any position costs the same.
    """

    def __init__(
        self, arena: ShardArena, files: ShardFiles, order: SampleOrder, global_batch: int, rows: slice, start: int
    ) -> None:
        self._arena, self._files, self._order = arena, files, order
        self._global_batch, self._rows = global_batch, rows
        self._own = rows.stop - rows.start
        self._next_plan, self._plans = start, deque[_Plan]()
        batch_bytes = max(1, arena.bytes_per_row * self._own)
        self._batches_per_plan = max(1, min(_PLAN_SAMPLES // max(1, self._own), _PLAN_BYTES // batch_bytes))
        self._batches_per_block = min(self._batches_per_plan, max(1, _BLOCK_BYTES // batch_bytes))
        self._free: queue.SimpleQueue[list[dict[str, Values | None]] | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[_Block | Exception] = queue.SimpleQueue()
        for _ in range(_RING):
            self._free.put([arena.buffers(self._own) for _ in range(self._batches_per_block)])
        self._thread = threading.Thread(target=self._fill, name="stream-reader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Batch]:
        held: deque[list[dict[str, Values | None]]] = deque()
        while True:
            block = self._ready.get()
            if isinstance(block, Exception):
                raise block
            batches, buffers = block
            held.append(buffers)
            yield from batches
            if len(held) == 2:
                self._free.put(held.popleft())

    def close(self) -> None:
        """Stop the thread and release all files."""
        self._free.put(None)
        self._files.close()
        self._thread.join()

    def _fill(self) -> None:
        try:
            # Buffers are taken in order, so the sentinel of close() is seen after at most one ring of gathers.
            buffers = self._free.get()
            while buffers is not None:
                plan = self._take_plan()
                index = self._arena.index(plan.shards, plan.rows)
                for first in range(0, self._batches_per_plan, self._batches_per_block):
                    count = min(self._batches_per_block, self._batches_per_plan - first)
                    batches = []
                    for number in range(first, first + count):
                        part = slice(number * self._own, (number + 1) * self._own)
                        columns = self._arena.gather(index, part, buffers[number - first])
                        batches.append(Batch(plan.position + number * self._global_batch, columns))
                    self._ready.put((batches, buffers))
                    buffers = self._free.get()
                    if buffers is None:
                        return
        except Exception as error:  # handed to the consumer, which raises it
            self._ready.put(error)

    def _take_plan(self) -> _Plan:
        """The next plan, its shards mapped; and enough plans behind it for the files to be fetched in time."""
        while not self._plans or (self._ahead() < self._files.ahead_bytes and len(self._plans) < _LARGEST_PLANS):
            plan = self._make_plan(self._next_plan)
            self._next_plan += self._batches_per_plan * self._global_batch
            self._plans.append(plan)
            self._files.expect(plan.needed)
            if len({number for p in self._plans for number in p.needed}) == self._arena.shards:
                break  # all of them: nothing is left to look ahead to
        plan = self._plans.popleft()
        if self._files.ahead_bytes:
            soon = {number for p in (plan, *self._plans) for number in p.needed}
            for number in self._arena.mapped - soon:
                self._arena.unmap_shard(number)
                self._files.release(number)
        for number in plan.needed:
            if number not in self._arena.mapped:
                self._arena.map_shard(number, self._files.acquire(number))
        return plan

    def _ahead(self) -> int:
        return self._arena.bytes_of({number for plan in self._plans for number in plan.needed})

    def _make_plan(self, position: int) -> _Plan:
        pattern = self._order.positions(0, self._global_batch, self._rows)
        starts = position + self._global_batch * np.arange(self._batches_per_plan, dtype=np.int64)
        shards, rows = self._order.locate((starts[:, None] + pattern).reshape(-1))
        numbers, first = np.unique(shards, return_index=True)
        return _Plan(position, shards, rows, tuple(numbers[np.argsort(first)].tolist()))
