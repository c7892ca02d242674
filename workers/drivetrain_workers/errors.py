"""Errors of the training side."""

from __future__ import annotations

from drivetrain_pipelines.errors import DrivetrainError


class CheckpointError(DrivetrainError):
    """No checkpoint can be loaded, or it does not fit the model."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)


class ResumeMismatchError(DrivetrainError):
    """The loaded state differs from the saved one, although every file is valid."""

    def __init__(self, checkpoint: str, difference: str) -> None:
        super().__init__(checkpoint, difference)
        self.checkpoint, self.difference = checkpoint, difference

    def __str__(self) -> str:
        return f"{self.checkpoint} was loaded, but {self.difference}; training from it would not be the same run"


class BadStepError(DrivetrainError):
    """A bad step, when the job is configured to stop or the limit of rewinds is reached."""

    def __init__(self, step: int, kind: str, detail: str) -> None:
        super().__init__(step, kind, detail)
        self.step, self.kind, self.detail = step, kind, detail

    def __str__(self) -> str:
        fix = f"Lower training.optimizer.lr, set gradient_clipping, or set training.guard.{self.kind} to rewind"
        return f"step {self.step}: {self.detail}. {fix}"


class RewindError(DrivetrainError):
    """A bad step; training resumes from the newest checkpoint without the batch of that step."""

    def __init__(self, step: int, detail: str) -> None:
        super().__init__(step, detail)
        self.step, self.detail = step, detail

    def __str__(self) -> str:
        return f"step {self.step}: {self.detail}; rewinding, its batch is skipped"
