"""Proof from a run's ledger that every sample was used exactly once per epoch, whatever failures occurred."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from drivetrain_pipelines.order.mixture import SampleOrder
from drivetrain_pipelines.order.permutation import Int64Array

from drivetrain_workers.protocol.step_record import StepRecord
from drivetrain_workers.records.adjustments import Positions, Skip

_CHUNK_POSITIONS = 1 << 20  # positions located in one pass


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Attributes:
        steps: recorded steps, each counted once.
        samples: positions consumed.
        epochs: epochs of each source.
        worlds: (first step, world size) for each change of the world size.
        skips: skipped positions, and the reasons.
        problems: everything that is wrong; empty if nothing is.
    """

    steps: int
    samples: int
    epochs: list[float]
    worlds: list[tuple[int, int]]
    skips: list[str]
    problems: list[str]


def audit(records: Sequence[StepRecord], order: SampleOrder, global_batch: int, skips: tuple[Skip, ...] = ()) -> Audit:
    """Check the records of a ledger, in order of step, against the order of samples.

    Args:
        skips: skips that guards have decided; their samples count as accounted for.
    """
    ranges = Positions(global_batch, skips)
    problems = []
    for number, record in enumerate(records):
        expected = ranges.start(number), ranges.start(number) + global_batch
        if record.step != number + 1:
            problems.append(f"step {number + 1} is missing; step {record.step} is in its place")
            break
        if record.positions != expected:
            given = f"{[*record.positions]} instead of {[*expected]}"
            problems.append(f"step {record.step} consumed positions {given}")
    end = ranges.start(len(records) - 1) + global_batch if records else 0
    epochs = []
    for number, source in enumerate(order.orders):
        delivered, uses = _uses(order, number, end)
        whole, begun = divmod(delivered, source.size)
        wrong = int(((uses < whole) | (uses > whole + (begun > 0))).sum()) + abs(int(uses.sum()) - delivered)
        if wrong:
            problems.append(f"source {number}: {wrong} samples were not used exactly once per epoch")
        epochs.append(delivered / source.size)
    worlds = [(record.step, record.world_size) for record in records[:1]]
    worlds += [(b.step, b.world_size) for a, b in pairwise(records) if a.world_size != b.world_size]
    skipped = [f"positions {s.start} to {s.stop} after step {s.step}: {s.why}" for s in skips]
    used = len(records) * global_batch
    return Audit(len(records), used, epochs, worlds, skipped, problems)


def _uses(order: SampleOrder, source_index: int, end: int) -> tuple[int, Int64Array]:
    """Return how many of the positions belong to a source, and how often each of its samples was used."""
    rows = order.orders[source_index].rows
    first = np.cumsum([0, *rows])
    before = sum(len(earlier.rows) for earlier in order.orders[:source_index])
    uses = np.zeros(first[-1], np.int64)
    delivered = 0
    for start in range(0, end, _CHUNK_POSITIONS):
        shards, rows_in_shard = order.locate(np.arange(start, min(start + _CHUNK_POSITIONS, end), dtype=np.int64))
        own = (shards >= before) & (shards < before + len(rows))
        np.add.at(uses, first[shards[own] - before] + rows_in_shard[own], 1)
        delivered += int(own.sum())
    return delivered, uses
