"""Counters over all runs of a home: the increments of a transition. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator

from drivetrain.runs.states import Allocated, Ended, Placing, Progress, State

ADMISSIONS = "admissions"  # allocations that were granted
RECOVERIES = "recoveries"  # generations that replaced a failed one, by the reason of the failure
ENDS = "ends"  # runs that have ended, by reason


def counter_increments(before: State, after: State) -> Iterator[tuple[str, str]]:
    """Yield the counters (name, label) that a transition increments, always in the same order."""
    if isinstance(after, Placing) and not isinstance(before, Allocated):  # otherwise a lost agent is replaced
        yield ADMISSIONS, ""
    if isinstance(after, Ended):
        yield ENDS, str(after.reason)
    if after.progress.restarts > before.progress.restarts:
        yield RECOVERIES, _newest_failure(before.progress, after.progress)


def _newest_failure(before: Progress, after: Progress) -> str:
    """Return the reason whose count has increased; after a completed step only the newest reason is left."""
    grown = [reason for reason, count in after.failures.items() if count > before.failures.get(reason, 0)]
    return str(next(iter(grown or after.failures), "unknown"))
