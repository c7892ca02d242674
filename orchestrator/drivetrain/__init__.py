"""Drivetrain: distributed training whose result does not depend on which machines fail.

    import drivetrain

    summary = drivetrain.run("job.yaml")                     # run a job to its end on this machine
    with drivetrain.connect() as runs:                       # the runs of this home
        print(runs.status(summary.run_id).reason)
    with drivetrain.connect("https://head:8900") as runs:    # the runs of a server: the same methods
        runs.wait(runs.submit("job.yaml").id)

errors: the errors that a caller can meet.
home: the folder of Drivetrain's files on this machine, and the names in it.
private_files: files with secrets, readable only by their owner.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drivetrain.api.client import Client
    from drivetrain.api.connect import connect
    from drivetrain.api.interface import RunInfo, Runs
    from drivetrain.api.local import LocalRuns
    from drivetrain.api.runs import RunSummary, resume, run, validate
    from drivetrain.errors import (
        AnswerLostError,
        BadStepError,
        CheckpointError,
        ClientOnlyError,
        ClusterError,
        CorruptFileError,
        DrivetrainError,
        FetchError,
        InputError,
        LauncherError,
        NotFoundError,
        PrepareError,
        RayStartError,
        ResumeMismatchError,
        RunOwnedError,
        ServerError,
        StoreUnavailableError,
        TrackingError,
        TransformError,
        UserCodeError,
        WrongBytesError,
    )

__all__ = [
    "AnswerLostError",
    "BadStepError",
    "CheckpointError",
    "Client",
    "ClientOnlyError",
    "ClusterError",
    "CorruptFileError",
    "DrivetrainError",
    "FetchError",
    "InputError",
    "LauncherError",
    "LocalRuns",
    "NotFoundError",
    "PrepareError",
    "RayStartError",
    "ResumeMismatchError",
    "RunInfo",
    "RunOwnedError",
    "RunSummary",
    "Runs",
    "ServerError",
    "StoreUnavailableError",
    "TrackingError",
    "TransformError",
    "UserCodeError",
    "WrongBytesError",
    "connect",
    "resume",
    "run",
    "validate",
]

_MODULES = {
    "Client": "api.client",
    "LocalRuns": "api.local",
    "RunInfo": "api.interface",
    "Runs": "api.interface",
    "connect": "api.connect",
    "RunSummary": "api.runs",
    "resume": "api.runs",
    "run": "api.runs",
    "validate": "api.runs",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is used: ``drivetrain --help`` must not wait for the modules behind the API."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
