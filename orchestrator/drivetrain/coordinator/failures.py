"""Classification of the errors that the control plane meets; see `drivetrain_workers.rank.failures` for ranks."""

from __future__ import annotations

from drivetrain_pipelines.actors.ray_failures import in_words
from drivetrain_pipelines.errors import (
    CorruptFileError,
    DrivetrainError,
    FetchError,
    InputError,
    PrepareError,
    TransformError,
    UserCodeError,
)
from drivetrain_pipelines.storage.access import access_problem
from drivetrain_workers.protocol.reasons import Reason

# The first match counts.
_BY_TYPE: tuple[tuple[type[BaseException], Reason], ...] = (
    (UserCodeError, Reason.USER_CODE),
    (TransformError, Reason.USER_CODE),
    (InputError, Reason.PREPARE_FAILED),  # the job was valid when it was submitted: its data is not what it says
    (PrepareError, Reason.PREPARE_FAILED),
    (FetchError, Reason.STORAGE),
    (CorruptFileError, Reason.STORAGE),
    (OSError, Reason.STORAGE),
)


def failure_of(error: BaseException) -> tuple[Reason, str]:
    """Return the reason why a run ends with this error, and its text in one line."""
    if not isinstance(error, UserCodeError):
        error = access_problem("object storage", error) or error
    reason = next((reason for kind, reason in _BY_TYPE if isinstance(error, kind)), Reason.INTERNAL)
    text = " ".join(str(error).split()) if isinstance(error, DrivetrainError | OSError) else ""
    return reason, text or in_words(error)
