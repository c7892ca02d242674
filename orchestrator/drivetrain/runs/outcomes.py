"""Why something ended, and what follows from it: one row for every reason."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from drivetrain_workers.protocol.reasons import Reason


class Status(StrEnum):
    """How a run ended, in MLflow's words."""

    FINISHED = "FINISHED"
    FAILED = "FAILED"
    KILLED = "KILLED"


@dataclass(frozen=True)
class Outcome:
    """What follows from a reason.

    Attributes:
        status: of the run, if this ends it.
        retries: restarts without progress in between that it is worth.
        meaning: for people.
    """

    status: Status
    retries: int
    meaning: str


OUTCOMES: dict[Reason, Outcome] = {
    Reason.COMPLETED: Outcome(Status.FINISHED, 0, "all steps are done"),
    Reason.CANCELLED: Outcome(Status.KILLED, 0, "cancelled by the user"),
    Reason.BUDGET_SPENT: Outcome(Status.KILLED, 0, "the job's budget is spent"),
    Reason.RANK_KILLED: Outcome(Status.FAILED, 5, "a rank process was killed"),
    Reason.COLLECTIVE: Outcome(Status.FAILED, 5, "a rank lost its peers"),
    Reason.HUNG: Outcome(Status.FAILED, 3, "a rank made no progress"),
    Reason.AGENT_LOST: Outcome(Status.FAILED, 5, "a node or its agent died"),
    Reason.STORAGE: Outcome(Status.FAILED, 3, "a file could not be read or written"),
    Reason.USER_CODE: Outcome(Status.FAILED, 1, "the job's own code raised an error"),
    Reason.OUT_OF_MEMORY: Outcome(Status.FAILED, 0, "out of memory; lower training.micro_batch_size"),
    Reason.SMALLER_BATCHES: Outcome(Status.FAILED, 20, "out of memory; the micro-batch was halved"),
    Reason.BAD_STEP: Outcome(Status.FAILED, 0, "the loss became infinite, NaN, or far higher than before"),
    Reason.RESUME_MISMATCH: Outcome(Status.FAILED, 0, "what was loaded is not what was saved"),
    Reason.REWOUND: Outcome(Status.FAILED, 100, "a step went wrong; its batch is passed over"),
    Reason.INPUT: Outcome(Status.FAILED, 0, "the job cannot work as written"),
    Reason.PREPARE_FAILED: Outcome(Status.FAILED, 0, "the data could not be prepared"),
    Reason.INTERNAL: Outcome(Status.FAILED, 0, "Drivetrain itself failed; please report it"),
    Reason.PLACEMENT_FAILED: Outcome(Status.FAILED, 0, "the cluster cannot hold the workers"),
}
