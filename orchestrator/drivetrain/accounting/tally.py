"""What has become of all runs of a home, counted over their transitions. Pure: the counts never fall."""

from __future__ import annotations

from collections import Counter

from drivetrain.runs.states import Ended, Placing, Progress, State


class Tally:
    """Takes transitions in, in the order in which they were stored.

    Attributes:
        admissions: places that were given.
        recoveries: generations that replaced a failed one, by the reason of the failure.
        ends: of runs, by reason.
    """

    def __init__(self) -> None:
        self.admissions = 0
        self.recoveries: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self._progress: dict[str, Progress] = {}  # of ended runs too: a user may resume them

    def add(self, run: str, state: State) -> None:
        """Count one transition."""
        before = self._progress.get(run, Progress())
        if state.progress.restarts > before.restarts:
            self.recoveries[_newest_failure(before, state.progress)] += 1
        self.admissions += isinstance(state, Placing)
        if isinstance(state, Ended):
            self.ends[state.reason] += 1
        self._progress[run] = state.progress


def _newest_failure(before: Progress, after: Progress) -> str:
    """The reason whose count has risen; where a step was made since the last one, the only reason that is left."""
    grown = [reason for reason, count in after.failures.items() if count > before.failures.get(reason, 0)]
    return next(iter(grown or after.failures), "unknown")
