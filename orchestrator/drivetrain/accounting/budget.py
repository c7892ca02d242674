"""Check whether a run has spent its budget."""

from __future__ import annotations

from collections.abc import Sequence

from drivetrain.accounting.cost import allocated_seconds, cost, worker_seconds
from drivetrain.job.spec import JobSpec
from drivetrain.runs.states import Queued, State

History = Sequence[tuple[float, str, State]]


def overspent(spec: JobSpec, history: History, joules: float, now: float) -> str:
    """Describe the budgets that are spent; return an empty string while all have some left.

    Args:
        history: as returned by `since_resumed`.
        joules: energy that the run has used since then.
    """
    budget = spec.budget
    found = cost(worker_seconds(history, now), joules, "", spec.resources)
    spent = (
        ("hours", budget.hours, allocated_seconds(history, now) / 3600),
        ("dollars", budget.dollars, found.dollars),
        ("energy_kwh", budget.energy_kwh, found.energy_kwh),
    )
    return ", ".join(
        f"budget.{name} of {most:g} is spent" for name, most, used in spent if most and (used or 0) >= most
    )


def since_resumed(history: History) -> History:
    """Return the transitions since a user resumed the run; all of them if it was never resumed."""
    resumes = [index for index, (_, _, state) in enumerate(history) if isinstance(state, Queued)]
    return history[resumes[-1] :] if resumes else history
