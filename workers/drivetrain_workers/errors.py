"""Errors of the training side."""

from __future__ import annotations

from drivetrain_pipelines.errors import DrivetrainError


class CheckpointError(DrivetrainError):
    """There is no checkpoint that can be loaded, or it does not fit the model."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)


class NonFiniteLossError(DrivetrainError):
    """The loss or the gradient norm is NaN or infinite."""

    def __init__(self, step: int, value: float) -> None:
        super().__init__(step, value)
        self.step, self.value = step, value

    def __str__(self) -> str:
        return f"the loss of step {self.step} is {self.value}; lower training.optimizer.lr or set gradient_clipping"
