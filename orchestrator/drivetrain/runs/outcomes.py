"""Status and retries for every reason why a generation or a run ends."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from drivetrain_workers.protocol.reasons import Reason


class Status(StrEnum):
    """Final status of a run, as in MLflow."""

    FINISHED = "FINISHED"
    FAILED = "FAILED"
    KILLED = "KILLED"


@dataclass(frozen=True)
class Outcome:
    """The consequence of a reason.

    Attributes:
        status: of the run, if this reason ends it.
        retries: maximum number of restarts without progress.
        meaning: description for users.
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
    Reason.OUT_OF_MEMORY: Outcome(Status.FAILED, 0, "out of memory; reduce training.micro_batch_size"),
    Reason.SMALLER_BATCHES: Outcome(Status.FAILED, 20, "out of memory; the micro-batch was halved"),
    Reason.BAD_STEP: Outcome(Status.FAILED, 0, "the loss became infinite, NaN, or much higher than before"),
    Reason.RESUME_MISMATCH: Outcome(Status.FAILED, 0, "the loaded state differs from the saved state"),
    Reason.REWOUND: Outcome(Status.FAILED, 100, "a training step failed; its batch is skipped"),
    Reason.INPUT: Outcome(Status.FAILED, 0, "the job is not valid"),
    Reason.PREPARE_FAILED: Outcome(Status.FAILED, 0, "the data could not be prepared"),
    Reason.INTERNAL: Outcome(Status.FAILED, 0, "Drivetrain itself failed; please report it"),
    Reason.PLACEMENT_FAILED: Outcome(Status.FAILED, 0, "the workers do not fit on the cluster"),
}
