"""Division of a global batch over ranks and micro-batches, at any world size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from drivetrain_pipelines.errors import InputError

_DEFAULT_MICRO_BATCH = 32


@dataclass(frozen=True)
class BatchPlan:
    """A plan with the same samples at every world size. The ranks' numbers of rows differ by at most one.

    Attributes:
        global_batch: samples per optimizer step over all ranks.
        accumulation: micro-batches per step; the same on all ranks because ZeRO communicates in each backward pass.
    """

    global_batch: int
    world_size: int
    micro_batch: int
    accumulation: int

    def rows(self, rank: int) -> slice:
        """Return this rank's contiguous rows of the global batch."""
        return slice(*_piece(self.global_batch, rank, self.world_size))

    def micro_batches(self, rank: int) -> list[slice]:
        """Return ``accumulation`` slices of the rank's own rows, at most ``micro_batch`` long; some may be empty."""
        rows = self.rows(rank)
        count = rows.stop - rows.start
        return [slice(*_piece(count, index, self.accumulation)) for index in range(self.accumulation)]


def solve(global_batch: int, micro_batch: int | Literal["auto"] | None, world_size: int) -> BatchPlan:
    """Solve micro-batch x accumulation x world size for a fixed global batch.

    Raises:
        InputError: a rank would have no sample, or a micro-batch larger than a rank's share.
    """
    if global_batch < world_size:
        raise InputError(
            "training.global_batch_size",
            str(global_batch),
            f"at least resources.workers ({world_size}), so that every rank has a sample",
        )
    largest_share = -(-global_batch // world_size)
    micro = min(largest_share, _DEFAULT_MICRO_BATCH) if micro_batch in ("auto", None) else int(micro_batch)
    if micro > largest_share:
        raise InputError(
            "training.micro_batch_size",
            str(micro),
            f"1 to {largest_share} (global_batch_size {global_batch} over {world_size} workers), or auto",
        )
    return BatchPlan(global_batch, world_size, micro, -(-largest_share // micro))


def total_steps(steps: int | None, epochs: float | None, rows: int, global_batch: int) -> int:
    """Return the optimizer steps of a run; an incomplete global batch at the end of the epochs counts as one step."""
    if steps is not None:
        return steps
    assert epochs is not None
    return max(1, -(-int(epochs * rows) // global_batch))


def _piece(length: int, index: int, pieces: int) -> tuple[int, int]:
    return length * index // pieces, length * (index + 1) // pieces
