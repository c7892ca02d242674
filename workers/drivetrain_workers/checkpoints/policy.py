"""When to save, and which checkpoints to keep. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping

from drivetrain_workers.records.run_folder import CheckpointId
from drivetrain_workers.spec import KeepSpec

_PRIOR_FAILURES, _PRIOR_S = 1.0, 24 * 3600.0  # one failure a day, until the run's own data outweighs it
_DEFAULT_INTERVAL_S = 60.0  # before the first save its cost is unknown
_MIN_WRITE_TIMES = 4.0  # a save may use a quarter of the storage's time, at most


def save_interval_s(stall_s: float | None, write_s: float, failures: int, elapsed_s: float) -> float:
    """Return the seconds between checkpoints that lose the least time to saves and to steps repeated after failures.

    Young (1974): the square root of twice the cost of a save times the mean time between failures.

    Args:
        stall_s: seconds that steps wait for a save; None before the first.
        write_s: seconds that the background write takes.
        failures, elapsed_s: of this run so far.
    """
    if stall_s is None:
        return _DEFAULT_INTERVAL_S
    between_failures_s = (_PRIOR_S + elapsed_s) / (_PRIOR_FAILURES + failures)
    return max(math.sqrt(2 * stall_s * between_failures_s), _MIN_WRITE_TIMES * write_s)


def to_keep(found: Mapping[CheckpointId, float | None], keep: KeepSpec) -> set[CheckpointId]:
    """Return the checkpoints to keep.

    Args:
        found: every committed checkpoint, with its score (lower is better) where it was evaluated.
    """
    newest_first = sorted(found, reverse=True)
    kept = set(newest_first[: keep.last])
    if keep.every:
        kept |= {checkpoint for checkpoint in found if checkpoint.step % keep.every == 0}
    judged = [(score, -checkpoint.step, checkpoint) for checkpoint, score in found.items() if score is not None]
    return kept | {checkpoint for _, _, checkpoint in sorted(judged, key=lambda j: j[:2])[: keep.best]}
