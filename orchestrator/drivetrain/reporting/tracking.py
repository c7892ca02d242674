"""What a tracking server has of a run, in words."""

from __future__ import annotations

from collections.abc import Iterator

from drivetrain.runs.facts import RunFacts

_MAX_NOTES = 10


def describe_tracking(run_id: str, facts: RunFacts) -> Iterator[tuple[str, str]]:
    """Yield titles and texts: what MLflow has not received, and what it has under another name or never accepts."""
    rows = []
    if facts.tracked is False:
        rows.append(f"MLflow has not received everything; the rest is kept, and `drivetrain sync {run_id}` sends it")
    elif facts.tracking_problem:
        rows.append("MLflow has not received everything yet; the rest is kept and sent again")
    if facts.tracked is not True and facts.tracking_problem:
        rows.append(f"last error: {facts.tracking_problem}")
    rows += facts.tracking_notes[:_MAX_NOTES]
    if more := len(facts.tracking_notes) - _MAX_NOTES:
        rows += [f"and {more} more, in `drivetrain status {run_id} --json`"] if more > 0 else []
    for number, text in enumerate(rows):
        yield "" if number else "tracking", text
