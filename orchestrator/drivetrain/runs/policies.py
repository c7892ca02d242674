"""Decisions that can be argued about. Pure functions: they never sleep and never call Ray."""

from __future__ import annotations

from drivetrain_workers.protocol.reasons import Reason

from drivetrain.runs.outcomes import OUTCOMES
from drivetrain.runs.states import Progress
from drivetrain.scheduling.model import Placement

_MAX_DELAY_S = 60.0


def retry_delay(progress: Progress, reason: Reason) -> float | None:
    """Seconds to wait before the next generation; None to give up.

    The first failure at a step restarts at once. Failures that repeat without any progress wait 1, 2, 4, ... seconds;
    each reason has its own budget of them.

    Args:
        progress: with this failure already counted in ``failures``.
    """
    if progress.failures[reason] > OUTCOMES[reason].retries:
        return None
    failures = sum(progress.failures.values())
    return 0.0 if failures <= 1 else min(_MAX_DELAY_S, 2.0 ** (failures - 2))


def keep_ranks(placement: Placement, before: Placement) -> Placement:
    """A placement in the order in which its nodes keep the ranks that they had ``before``, as far as that goes.

    What a node holds in memory is of use only to the ranks that wrote it.
    """
    order = {node: index for index, node in enumerate(node for node, _ in before)}
    newcomers = iter([entry for entry in placement if entry[0] not in order])
    stayed = {node: (node, ranks) for node, ranks in placement if node in order}
    kept = [stayed.pop(node) if node in stayed else next(newcomers, None) for node, _ in before]
    return (*(entry for entry in kept if entry), *newcomers)
