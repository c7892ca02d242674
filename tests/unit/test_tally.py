"""What the server counts for Prometheus."""

from __future__ import annotations

from drivetrain.accounting.tally import Tally
from drivetrain.runs.states import Ended, Place, Placing, Progress, Queued, Starting, State, Training
from drivetrain_workers.protocol.reasons import Reason


def after(*failures: Reason, restarts: int) -> Progress:
    return Progress(failures={reason: failures.count(reason) for reason in failures}, restarts=restarts)


def test_every_recovery_is_counted_once_by_its_reason() -> None:
    killed, lost = Reason.RANK_KILLED, Reason.AGENT_LOST
    states: list[State] = [
        Queued(),
        Placing("d", Place()),
        Training("d", Place()),
        Starting("d", Place(), progress=after(killed, restarts=1)),
        Training("d", Place(), progress=after(killed, restarts=1)),
        Starting("d", Place(), progress=after(killed, lost, restarts=2)),  # no step in between
        Training("d", Place(), progress=after(killed, lost, restarts=2)),
        Placing("d", Place(), progress=after(lost, restarts=3)),  # steps in between: counts began anew
        Ended(Reason.CANCELLED, progress=after(lost, restarts=3)),
        Queued(progress=after(restarts=3)),  # resumed by the user
        Ended(Reason.COMPLETED, progress=after(restarts=3)),
    ]
    tally = Tally()
    for state in states:
        tally.add("a", state)
        tally.add("b", Queued())
    assert tally.recoveries == {killed: 1, lost: 2}
    assert tally.admissions == 2
    assert tally.ends == {Reason.CANCELLED: 1, Reason.COMPLETED: 1}
