"""Whether a run has spent its budget."""

from __future__ import annotations

from collections.abc import Sequence

from drivetrain.accounting.cost import allocated_seconds, cost, worker_seconds
from drivetrain.job.spec import JobSpec
from drivetrain.runs.states import Queued, State

History = Sequence[tuple[float, str, State]]


def overspent(spec: JobSpec, history: History, joules: float, now: float) -> str:
    """What was spent, and how much of it there was; empty while there is some left.

    Args:
        history: as of `since_resumed`.
        joules: that the run has taken since then.
    """
    budget = spec.budget
    found = cost(worker_seconds(history, now), joules, "", spec.resources)
    spent = (
        ("hours", budget.hours, allocated_seconds(history, now) / 3600),
        ("dollars", budget.dollars, found.dollars),
        ("energy_kwh", budget.energy_kwh, found.energy_kwh),
    )
    return ", ".join(
        f"budget.{name} is {most:g}, and spent" for name, most, used in spent if most and (used or 0) >= most
    )


def since_resumed(history: History) -> History:
    """The transitions since a user has resumed the run; all of them where nobody has."""
    resumes = [index for index, (_, _, state) in enumerate(history) if isinstance(state, Queued)]
    return history[resumes[-1] :] if resumes else history
