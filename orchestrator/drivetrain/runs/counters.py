"""What a transition adds to the counters over all runs of a home. Pure: counters never fall."""

from __future__ import annotations

from collections.abc import Iterator

from drivetrain.runs.states import Ended, Placing, Progress, State

ADMISSIONS = "admissions"  # places that were given
RECOVERIES = "recoveries"  # generations that replaced a failed one, by the reason of the failure
ENDS = "ends"  # runs that have ended, by reason


def counter_increments(before: Progress, after: State) -> Iterator[tuple[str, str]]:
    """Yield the counters (name, label) that a transition raises by one, always in the same order.

    Args:
        before: of the run, until the transition.
        after: the state that it has led to.
    """
    if isinstance(after, Placing):
        yield ADMISSIONS, ""
    if isinstance(after, Ended):
        yield ENDS, str(after.reason)
    if after.progress.restarts > before.restarts:
        yield RECOVERIES, _newest_failure(before, after.progress)


def _newest_failure(before: Progress, after: Progress) -> str:
    """The reason whose count has risen; where a step was made since the last one, the only reason that is left."""
    grown = [reason for reason, count in after.failures.items() if count > before.failures.get(reason, 0)]
    return str(next(iter(grown or after.failures), "unknown"))
