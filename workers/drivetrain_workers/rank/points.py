"""The points of the training loop at which callbacks are attached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, ParamSpec

from drivetrain_pipelines.stream.reader import Batch

from drivetrain_workers.protocol.step_record import Evaluation, StepRecord

_Arguments = ParamSpec("_Arguments")


class Point(Generic[_Arguments]):
    """A point of the loop. Calling it calls all attached functions in the order of their attachment."""

    def __init__(self) -> None:
        self._attached: list[Callable[_Arguments, None]] = []

    def attach(self, call: Callable[_Arguments, None]) -> None:
        """Attach a function to this point. An exception in it ends the generation."""
        self._attached.append(call)

    def __call__(self, *arguments: _Arguments.args, **named: _Arguments.kwargs) -> None:
        """Call all attached functions."""
        for call in self._attached:
            call(*arguments, **named)


@dataclass(frozen=True)
class StepOutcome:
    """A completed optimizer step, before its evaluation and save.

    Attributes:
        weights_finite: see `drivetrain_workers.engine.engine.StepResult`.
        step_s, data_wait_s: see `drivetrain_workers.protocol.events.StepDone`.
    """

    record: StepRecord
    batch: Batch
    weights_finite: bool
    step_s: float
    data_wait_s: float


@dataclass(frozen=True)
class LoopPoints:
    """The points of the loop. Every rank reaches them at the same steps.

    Attributes:
        phase: called with the new phase (``data``, ``step``, ``evaluate``, ``save``, ``copy``; at the end ``last
            save``) and the optimizer steps done.
        after_step: before the step is recorded, so that a step that the guard rejects is never recorded.
        after_evaluation: called with the step and its evaluation.
        after_save: called with the step, after the save was started.
        after_iteration: at the end of a loop iteration; called with the step, and the seconds that this rank
            spent in collectives.
    """

    phase: Point[[str, int]] = field(default_factory=Point)
    after_step: Point[[StepOutcome]] = field(default_factory=Point)
    after_evaluation: Point[[int, Evaluation]] = field(default_factory=Point)
    after_save: Point[[int]] = field(default_factory=Point)
    after_iteration: Point[[int, float]] = field(default_factory=Point)
