"""Who failed first: the failures of a generation's ranks, told in one paragraph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from drivetrain_workers.protocol.reasons import Reason


@dataclass(frozen=True)
class Failure:
    """How one rank ended.

    Attributes:
        time: seconds since the epoch, by its own node's clock.
        how: for people.
    """

    time: float
    rank: int
    reason: Reason
    how: str


def describe_failures(failures: Sequence[Failure]) -> str:
    """The culprit, and what followed. Who only lost its peers is no culprit, unless there is nobody else.

    Args:
        failures: of one generation, at least one, in any order.
    """
    ordered = sorted(failures, key=lambda failure: (failure.reason is Reason.COLLECTIVE, failure.time))
    culprit, *others = ordered
    text = f"rank {culprit.rank} {culprit.how}"
    consequences = [failure for failure in others if failure.reason is Reason.COLLECTIVE]
    if consequences and culprit.reason is not Reason.COLLECTIVE:
        ranks = ", ".join(str(rank) for rank in sorted({failure.rank for failure in consequences}))
        text += f"; its peers lost it: {ranks}"
    for failure in others:
        if failure.reason is not Reason.COLLECTIVE or culprit.reason is Reason.COLLECTIVE:
            text += f"; {failure.time - culprit.time:+.1f} s: rank {failure.rank} {failure.how}"
    return text
