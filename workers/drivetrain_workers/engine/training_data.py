"""The training and eval data of a rank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from drivetrain_pipelines.online.transform import OnlineTransform
from drivetrain_pipelines.spec import DataSpec
from drivetrain_pipelines.stream.columns import Columns
from drivetrain_pipelines.stream.dataset import Dataset, open_dataset
from drivetrain_pipelines.stream.reader import Batch, StreamReader

from drivetrain_workers.engine.batching import BatchPlan
from drivetrain_workers.records.run_folder import RunFolder
from drivetrain_workers.spec import DATA_FACTS


@dataclass(frozen=True)
class EvalPart:
    """A rank's part of the evaluation data.

    Attributes:
        columns: rows of this rank; at least one, which is a padding row if the rank has none.
        rows: number of rows that belong to this rank.
        total_rows: number of rows of all ranks.
        start: position of the rank's first row among all rows.
    """

    columns: Columns
    rows: int
    total_rows: int
    start: int


def model_facts(dataset: Dataset, data: DataSpec) -> dict[str, int]:
    """Return the facts of the data that a model factory can request."""
    known = {name: int(value) for name, value in dataset.manifest.statistics.items() if name in DATA_FACTS}
    return {**known, "sequence_length": data.sequence_length}


class TrainingData:
    """A run's dataset, opened by one rank.

    Args:
        location: prepared dataset version.
        data: the job's data section.
        seed: seed of the job.
        folder: folder of the run.
    """

    def __init__(self, location: str, data: DataSpec, seed: int, folder: RunFolder) -> None:
        self._spec, self._folder = data, folder
        self._dataset = open_dataset(location, data)
        self._order = self._dataset.training_order(data, seed)
        self._online = OnlineTransform.of(data, folder.code, seed)

    @property
    def epoch(self) -> int:
        """Samples per epoch."""
        return self._order.epoch

    @property
    def facts(self) -> dict[str, int]:
        """Facts of the data that a model factory can request."""
        return model_facts(self._dataset, self._spec)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels."""
        return tuple(self._dataset.manifest.classes)

    @contextmanager
    def batches(self, plan: BatchPlan, rank: int, local_ranks: int, start: int) -> Iterator[Iterator[Batch]]:
        """Yield a rank's part of each global batch, from global position ``start`` on.

        Args:
            local_ranks: number of ranks on this node.
        """
        rows = plan.rows(rank)
        if self._spec.online:
            # Imported here: only such jobs need Flight.
            from drivetrain_pipelines.online.reader import OnlineReader
            from drivetrain_pipelines.online.wire import Endpoints

            endpoints = Endpoints(self._folder.online)
            remote = OnlineReader(endpoints, self._spec.online.actors, plan.global_batch, rows, start)
            try:
                yield iter(remote)
            finally:
                remote.close()
            return
        arena, files = self._dataset.open("train", local_ranks)
        allocate = _pinned if torch.cuda.is_available() else np.zeros
        reader = StreamReader(arena, files, self._order, plan.global_batch, rows, start, allocate=allocate)
        try:
            yield iter(reader)
        finally:
            reader.close()
            arena.close()

    def evaluation(self, plan: BatchPlan, rank: int) -> EvalPart:
        """Return a rank's part of the eval split. An online transform is applied here, without random numbers."""
        total = self._dataset.manifest.rows("eval")
        own = BatchPlan(total, plan.world_size, 1, 1).rows(rank)
        numbers = np.arange(own.start, max(own.start + 1, own.stop), dtype=np.int64) % total
        columns = self._dataset.read("eval", numbers)
        if self._online:
            columns = {**self._online.apply(columns, None)}
        return EvalPart(columns, own.stop - own.start, total, own.start)


def _pinned(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Allocate pinned memory, which a GPU can copy from directly."""
    kind = torch.from_numpy(np.empty(0, dtype)).dtype
    pinned: npt.NDArray[Any] = torch.zeros(shape, dtype=kind, pin_memory=True).numpy()
    return pinned
