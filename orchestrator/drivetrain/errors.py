"""The errors that a caller of Drivetrain can meet. All can be imported from `drivetrain`.

DrivetrainError              every error that Drivetrain reports itself
  InputError                 a setting, an option or a file is wrong; nothing was started
  NotFoundError              a run, dataset, checkpoint, recipe or token does not exist
  PrepareError               the raw data cannot be turned into a dataset
  CorruptFileError           a file does not hold the bytes that were written
  FetchError                 a remote file cannot be read
    WrongBytesError          storage holds other bytes than were written
  UserCodeError              a function of the job raises an exception
  TransformError             the online transform of the job fails
  CheckpointError            a checkpoint cannot be loaded, or the model cannot be asked
  ResumeMismatchError        a loaded checkpoint is not what was saved
  BadStepError               training produced a bad step, and the job says to stop
  TrackingError              MLflow has not accepted everything that a run logged
  RayStartError              Ray does not start on this machine
  RunOwnedError              another coordinator runs the run
  StoreUnavailableError      the run database does not answer
  ClusterError               the Ray cluster, or the coordinator on it, fails or does not answer
  LauncherError              a cluster of cloud machines cannot be started, queried or terminated
  ServerError                a Drivetrain server refuses a request, or cannot be reached
    AnswerLostError          it may have done what was requested, but no answer came
  ClientOnlyError            the packages that run jobs are not installed here

Every error keeps its constructor arguments in ``args``, so it survives pickling.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from drivetrain_pipelines.errors import (
    CorruptFileError,
    DrivetrainError,
    FetchError,
    InputError,
    PrepareError,
    TransformError,
    UserCodeError,
    WrongBytesError,
)
from drivetrain_workers.errors import BadStepError, CheckpointError, ResumeMismatchError

__all__ = [
    "AnswerLostError",
    "BadStepError",
    "CheckpointError",
    "ClientOnlyError",
    "ClusterError",
    "CorruptFileError",
    "DrivetrainError",
    "FetchError",
    "InputError",
    "LauncherError",
    "NotFoundError",
    "PrepareError",
    "RayStartError",
    "ResumeMismatchError",
    "RunOwnedError",
    "ServerError",
    "StoreUnavailableError",
    "TrackingError",
    "TransformError",
    "UserCodeError",
    "WrongBytesError",
]

_MAX_SHOWN = 10  # names in a message
_MAX_SIMILAR = 3


class NotFoundError(DrivetrainError):
    """A run, dataset, checkpoint, recipe or token does not exist.

    Args:
        kind: what was looked for, for example ``run``.
        name: the name that was given.
        known: names that exist, the most relevant first; not necessarily all.
        searched: where it was looked for; may be empty.
        fix: what to do about it; may be empty.
    """

    def __init__(self, kind: str, name: str, known: Sequence[str] = (), searched: str = "", fix: str = "") -> None:
        super().__init__(kind, name, tuple(known), searched, fix)
        self.kind, self.name, self.known, self.searched, self.fix = kind, name, tuple(known), searched, fix

    @property
    def similar(self) -> list[str]:
        """The known names that are spelled like the given one, the closest first."""
        return difflib.get_close_matches(self.name, self.known, n=_MAX_SIMILAR)

    def __str__(self) -> str:
        text = f"there is no {self.kind} {self.name!r}" + (f" in {self.searched}" if self.searched else "")
        if similar := self.similar:
            text += f". Did you mean {' or '.join(similar)}?"
        else:
            text += "."
        known = ", ".join(self.known[:_MAX_SHOWN]) or "none"
        more = f" and {len(self.known) - _MAX_SHOWN} more" if len(self.known) > _MAX_SHOWN else ""
        text += f" Known {self.kind}s: {known}{more}."
        return f"{text} {self.fix}" if self.fix else text

    def to_json(self) -> dict[str, Any]:
        """Return the constructor's arguments by name."""
        return {
            "kind": self.kind,
            "name": self.name,
            "known": list(self.known),
            "searched": self.searched,
            "fix": self.fix,
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> NotFoundError:
        """Return the error of `to_json`."""
        return cls(found["kind"], found["name"], found["known"], found.get("searched", ""), found.get("fix", ""))


class TrackingError(DrivetrainError):
    """MLflow has not accepted everything that a run logged. A timeout of 0 means that waiting would not have helped."""

    def __init__(self, timeout_s: float, problem: str) -> None:
        super().__init__(timeout_s, problem)
        self.timeout_s, self.problem = timeout_s, problem

    def __str__(self) -> str:
        waited = f" within {self.timeout_s:g} s" if self.timeout_s else ""
        return f"MLflow has not accepted everything{waited}; the rest is kept. {self.problem}".rstrip()


class RayStartError(DrivetrainError):
    """Ray does not start on this machine.

    Attributes:
        problem: what Ray reports.
        tries: number of attempts.
        logs: folder of the logs of the last one; empty if it has none.
    """

    def __init__(self, problem: str, tries: int, logs: str) -> None:
        super().__init__(problem, tries, logs)
        self.problem, self.tries, self.logs = problem, tries, logs

    def __str__(self) -> str:
        where = f" Its logs: {self.logs}" if self.logs else ""
        return f"Ray did not start, {self.tries} times: {self.problem}.{where}"


class RunOwnedError(DrivetrainError):
    """Another coordinator runs the run."""

    def __init__(self, run_id: str) -> None:
        super().__init__(run_id)
        self.run_id = run_id

    def __str__(self) -> str:
        return f"another coordinator runs {self.run_id}; wait until it has ended, or cancel it there"


class StoreUnavailableError(DrivetrainError):
    """The run database has not answered for minutes."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        return f"the database does not answer: {self.detail}"


class ClusterError(DrivetrainError):
    """The Ray cluster, or the coordinator on it, fails or does not answer."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)


class LauncherError(DrivetrainError):
    """A cluster of cloud machines cannot be started, queried or terminated."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)


class ServerError(DrivetrainError):
    """A Drivetrain server refuses a request, or cannot be reached.

    Attributes:
        status: HTTP status; 0 when no server answered.
    """

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(status, detail)
        self.status, self.detail = status, detail

    def __str__(self) -> str:
        return f"{self.detail} (HTTP {self.status})" if self.status else self.detail


class AnswerLostError(ServerError):
    """A request was sent and no answer came: the server may have done what it asks."""


class ClientOnlyError(DrivetrainError):
    """The packages that run jobs are not installed here, only the client of a server."""

    def __init__(self, missing: str) -> None:
        super().__init__(missing)
        self.missing = missing

    def __str__(self) -> str:
        return (
            f"only the client of Drivetrain is installed here; {self.missing} is missing. For local runs: "
            "pip install 'drivetrain[train]'. For runs on a server: --server URL or DRIVETRAIN_SERVER."
        )
