"""Policies for retries and placement. Pure functions: they never sleep and never call Ray."""

from __future__ import annotations

from drivetrain_workers.protocol.reasons import Reason

from drivetrain.runs.outcomes import OUTCOMES
from drivetrain.runs.states import Progress
from drivetrain.scheduling.model import Placement

_MAX_DELAY_S = 60.0
# For the ranks to finish a step and to save. A rank that hangs is found earlier, by its heartbeats.
STOP_TIMEOUT_S = 1800.0


def retry_delay(progress: Progress, reason: Reason) -> float | None:
    """Return the delay in seconds before the next generation, or None to give up.

    The first failure at a step restarts immediately. Repeated failures without progress wait 1, 2, 4, ... seconds;
    each reason has its own maximum number of retries.

    Args:
        progress: its ``failures`` include this failure.
    """
    if progress.failures[reason] > OUTCOMES[reason].retries:
        return None
    failures = sum(progress.failures.values())
    return 0.0 if failures <= 1 else min(_MAX_DELAY_S, 2.0 ** (failures - 2))


def keep_ranks(placement: Placement, before: Placement) -> Placement:
    """Order a placement so that nodes keep the ranks that they had ``before``, as far as possible.

    A checkpoint copy in the memory of a node is useful only to the ranks that wrote it.
    """
    order = {node: index for index, node in enumerate(node for node, _ in before)}
    newcomers = iter([entry for entry in placement if entry[0] not in order])
    stayed = {node: (node, ranks) for node, ranks in placement if node in order}
    kept = [stayed.pop(node) if node in stayed else next(newcomers, None) for node, _ in before]
    return (*(entry for entry in kept if entry), *newcomers)
