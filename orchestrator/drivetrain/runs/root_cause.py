"""The root cause of a failure: which rank of a generation failed first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from drivetrain_workers.protocol.reasons import Reason


@dataclass(frozen=True)
class Failure:
    """How one rank ended.

    Attributes:
        time: seconds since the epoch, by its own node's clock.
        how: description for users.
    """

    time: float
    rank: int
    reason: Reason
    how: str


def describe_failures(failures: Sequence[Failure]) -> str:
    """Describe the first failure and its consequences.

    A rank that only lost its peers is not the root cause unless every rank did.

    Args:
        failures: of one generation, at least one, in any order.
    """
    ordered = sorted(failures, key=lambda failure: (failure.reason is Reason.COLLECTIVE, failure.time))
    first, *others = ordered
    text = f"rank {first.rank} {first.how}"
    consequences = [failure for failure in others if failure.reason is Reason.COLLECTIVE]
    if consequences and first.reason is not Reason.COLLECTIVE:
        ranks = ", ".join(str(rank) for rank in sorted({failure.rank for failure in consequences}))
        text += f"; disconnected peers: {ranks}"
    for failure in others:
        if failure.reason is not Reason.COLLECTIVE or first.reason is Reason.COLLECTIVE:
            text += f"; {failure.time - first.time:+.1f} s: rank {failure.rank} {failure.how}"
    return text
