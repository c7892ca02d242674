"""The counters over all runs, from transition to transition."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from drivetrain.runs.counters import ADMISSIONS, ENDS, RECOVERIES, counter_increments
from drivetrain.runs.states import Allocation, Ended, Placing, Progress, Queued, Starting, State, Training
from drivetrain_workers.protocol.reasons import Reason


def after(*failures: Reason, restarts: int) -> Progress:
    return Progress(failures={reason: failures.count(reason) for reason in failures}, restarts=restarts)


def test_every_recovery_is_counted_once_by_its_reason() -> None:
    killed, lost = Reason.RANK_KILLED, Reason.AGENT_LOST
    states: list[State] = [
        Queued(),
        Placing("d", Allocation()),
        Training("d", Allocation()),
        Starting("d", Allocation(), progress=after(killed, restarts=1)),
        Training("d", Allocation(), progress=after(killed, restarts=1)),
        Starting("d", Allocation(), progress=after(killed, lost, restarts=2)),  # no step in between
        Training("d", Allocation(), progress=after(killed, lost, restarts=2)),
        Placing("d", Allocation(), progress=after(lost, restarts=3)),  # steps in between: the counts were reset
        Ended(Reason.CANCELLED, progress=after(lost, restarts=3)),
        Queued(progress=after(restarts=3)),  # resumed by the user
        Ended(Reason.COMPLETED, progress=after(restarts=3)),
    ]
    found: Counter[tuple[str, str]] = Counter()
    for before, state in pairwise([Queued(), *states]):
        found.update(counter_increments(before, state))
    assert found == {
        (RECOVERIES, killed): 1,
        (RECOVERIES, lost): 2,
        (ADMISSIONS, ""): 1,  # a lost agent is replaced on the same allocation
        (ENDS, Reason.CANCELLED): 1,
        (ENDS, Reason.COMPLETED): 1,
    }
