"""The rank that failed first."""

from __future__ import annotations

import pytest
from drivetrain.runs.root_cause import Failure, describe_failures
from drivetrain_workers.protocol.reasons import Reason

KILLED = Failure(10.2, 3, Reason.RANK_KILLED, "was killed by signal 9")
PEER = Failure(10.1, 0, Reason.COLLECTIVE, "exited with code 1: connection closed")
OTHER_PEER = Failure(10.3, 2, Reason.COLLECTIVE, "exited with code 1: connection closed")
MEMORY = Failure(11.0, 1, Reason.OUT_OF_MEMORY, "exited with code 1: out of memory")


@pytest.mark.parametrize(
    ("failures", "text"),
    [
        ([KILLED], "rank 3 was killed by signal 9"),
        ([OTHER_PEER, PEER, KILLED], "rank 3 was killed by signal 9; disconnected peers: 0, 2"),
        (
            [MEMORY, KILLED, PEER],
            "rank 3 was killed by signal 9; disconnected peers: 0; +0.8 s: rank 1 exited with code 1: out of memory",
        ),
        (
            [OTHER_PEER, PEER],
            "rank 0 exited with code 1: connection closed; +0.2 s: rank 2 exited with code 1: connection closed",
        ),
    ],
)
def test_the_first_failure_comes_first(failures: list[Failure], text: str) -> None:
    assert describe_failures(failures) == text
