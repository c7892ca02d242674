"""Streaming a dataset split to one rank: order, gather, prefetch."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from drivetrain_pipelines.arena import ShardArena
from drivetrain_pipelines.order import ShuffledOrder
from drivetrain_pipelines.shards import Manifest

Columns = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Batch:
    """One rank's rows of one global batch.

    Attributes:
        position: global position of the global batch's first sample.
        columns: arrays ``[rows, width]``; valid until the batch after the next one is taken.
    """

    position: int
    columns: Columns


class Dataset:
    """A prepared dataset version, opened for reading.

    Args:
        folder: holds the manifest and the shards.

    Raises:
        CorruptFileError: no valid manifest, or a shard of another layout.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = Manifest.read(folder)

    def open(self, split: str) -> ShardArena:
        """Map all shards of a split; the caller closes the arena."""
        shards = self.manifest.splits[split]
        return ShardArena([self.folder / shard.file for shard in shards], [shard.rows for shard in shards])


class StreamReader:
    """Endless shuffled batches of one rank, gathered ahead by a thread into reused buffers.

    Args:
        arena: the mapped split; stays open until after `close`.
        order: position to sample.
        global_batch: samples per step over all ranks.
        rows: this rank's slice of the global batch.
        start: global position to begin at, a multiple of nothing: any position costs the same.
    """

    _RING = 4  # one batch in use, one just released, two ahead

    def __init__(self, arena: ShardArena, order: ShuffledOrder, global_batch: int, rows: slice, start: int) -> None:
        self._arena, self._order, self._global_batch, self._rows = arena, order, global_batch, rows
        self._free: queue.SimpleQueue[Columns | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[Batch | Exception] = queue.SimpleQueue()
        for _ in range(self._RING):
            self._free.put(arena.buffers(rows.stop - rows.start))
        self._thread = threading.Thread(target=self._fill, args=(start,), name="stream-reader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Batch]:
        held: list[Columns] = []
        while True:
            batch = self._ready.get()
            if isinstance(batch, Exception):
                raise batch
            held.append(batch.columns)
            yield batch
            if len(held) == 2:
                self._free.put(held.pop(0))

    def close(self) -> None:
        """Stop the thread; it never blocks for longer than one gather."""
        self._free.put(None)
        self._thread.join()

    def _fill(self, position: int) -> None:
        try:
            # Buffers are taken in order, so the sentinel of close() is seen after at most one ring of gathers.
            while (buffers := self._free.get()) is not None:
                first = position + self._rows.start
                samples = self._order.samples(first, position + self._rows.stop)
                self._arena.gather(samples, buffers)
                self._ready.put(Batch(position, buffers))
                position += self._global_batch
        except Exception as error:  # handed to the consumer, which raises it
            self._ready.put(error)
