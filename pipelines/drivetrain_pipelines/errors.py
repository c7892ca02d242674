"""The root of Drivetrain's errors. Every error keeps its constructor arguments in ``args``, so it survives pickling."""

from __future__ import annotations


class DrivetrainError(Exception):
    """Base class of all errors that Drivetrain reports."""


class InputError(DrivetrainError):
    """A user's input is wrong; raised before anything starts.

    Args:
        where: the key or file that is wrong, for example ``training.zero_stage``.
        given: what was given.
        allowed: what would be accepted.
        fix: what to do about it; may be empty.
    """

    def __init__(self, where: str, given: str, allowed: str, fix: str = "") -> None:
        super().__init__(where, given, allowed, fix)
        self.where, self.given, self.allowed, self.fix = where, given, allowed, fix

    def __str__(self) -> str:
        text = f"{self.where}: got {self.given}; allowed: {self.allowed}"
        return f"{text}. {self.fix}" if self.fix else text


class UserCodeError(DrivetrainError):
    """A function of the job raised an exception, or tried to end its process.

    Args:
        key: the job file's key that names the function, for example ``model.loss``.
        problem: type and text of the exception, in one line.
        where: file, line and function of the job's code; may be empty.
    """

    def __init__(self, key: str, problem: str, where: str = "") -> None:
        super().__init__(key, problem, where)
        self.key, self.problem, self.where = key, problem, where

    def __str__(self) -> str:
        return f"{self.key} raised {self.problem}" + (f" ({self.where})" if self.where else "")


class CorruptFileError(DrivetrainError):
    """Bytes on disk are not the bytes that were written."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        self.path, self.problem = path, problem

    def __str__(self) -> str:
        return f"{self.path} is corrupt: {self.problem}"


class PrepareError(DrivetrainError):
    """The raw data could not be turned into a dataset.

    Attributes:
        problem: what is wrong.
        fix: what to change in the job.
    """

    def __init__(self, problem: str, fix: str = "") -> None:
        super().__init__(problem, fix)
        self.problem, self.fix = problem, fix

    def __str__(self) -> str:
        return f"{self.problem}. {self.fix}" if self.fix else self.problem


class FetchError(DrivetrainError):
    """A remote file could not be fetched within the retry deadline."""

    def __init__(self, url: str, block: int, problem: str) -> None:
        super().__init__(url, block, problem)
        self.url, self.block, self.problem = url, block, problem

    def __str__(self) -> str:
        return f"block {self.block} of {self.url} could not be fetched: {self.problem}"


class WrongBytesError(FetchError):
    """Storage holds other bytes than were written, or none. Another attempt does not help."""


class TransformError(DrivetrainError):
    """The user's online transform failed, or its results cannot be used."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)


class TransformersLostError(DrivetrainError):
    """No actor that applies the online transform could be reached within the timeout."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
