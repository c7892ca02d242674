"""The points of the training loop, to which what is not the loop's own work attaches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, ParamSpec

from drivetrain_pipelines.stream.reader import Batch

from drivetrain_workers.protocol.step_record import Evaluation, StepRecord

_Arguments = ParamSpec("_Arguments")


class Point(Generic[_Arguments]):
    """A point of the loop. Calling it calls everything that is attached, in the order in which it was attached."""

    def __init__(self) -> None:
        self._attached: list[Callable[_Arguments, None]] = []

    def attach(self, call: Callable[_Arguments, None]) -> None:
        """Have ``call`` called at this point. What it raises ends the generation."""
        self._attached.append(call)

    def __call__(self, *arguments: _Arguments.args, **named: _Arguments.kwargs) -> None:
        """The loop is here."""
        for call in self._attached:
            call(*arguments, **named)


@dataclass(frozen=True)
class StepOutcome:
    """An optimizer step that is done, before it is evaluated or saved.

    Attributes:
        step_s, data_wait_s: see `drivetrain_workers.protocol.events.StepDone`.
    """

    record: StepRecord
    batch: Batch
    step_s: float
    data_wait_s: float


@dataclass(frozen=True)
class LoopPoints:
    """The points of the loop, which every rank reaches at the same steps.

    Attributes:
        phase: with the phase that begins (``data``, ``step``, ``evaluate``, ``save``, ``copy``; at the end ``last
            save``) and the optimizer steps done.
        after_step: before the step is recorded: a step whose guard raises has never been.
        after_evaluation: with the step and its evaluation.
        after_save: with the step; the checkpoint is on its way to storage.
        after_iteration: when a step with all that belongs to it is done; with the step, and the seconds that this rank
            spent in collectives.
    """

    phase: Point[[str, int]] = field(default_factory=Point)
    after_step: Point[[StepOutcome]] = field(default_factory=Point)
    after_evaluation: Point[[int, Evaluation]] = field(default_factory=Point)
    after_save: Point[[int]] = field(default_factory=Point)
    after_iteration: Point[[int, float]] = field(default_factory=Point)
