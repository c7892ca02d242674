"""The record of one optimizer step: written to the ledger, reported by the rank, logged by the tracker."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Self

from drivetrain_pipelines.storage.json_files import JsonObject


@dataclass(frozen=True)
class Evaluation:
    """The result of one evaluation.

    Attributes:
        loss: mean over the eval split.
        metrics: metrics of the job, by name.
        score: value for the comparison of checkpoints; lower is better.
    """

    loss: float
    metrics: dict[str, float]
    score: float


@dataclass(frozen=True)
class StepRecord:
    """The samples that one optimizer step consumed, and its result.

    Attributes:
        step: number of optimizer steps including this one.
        positions: ``(start, stop)`` of the samples in the stream.
        generation: generation of the ranks.
        time: end of the step, in seconds since the epoch.
        gradient_norm: before clipping; None where the job disables its computation.
        evaluation: evaluation after this step, if there was one.
    """

    step: int
    positions: tuple[int, int]
    world_size: int
    generation: int
    time: float
    loss: float
    learning_rate: float
    gradient_norm: float | None
    evaluation: Evaluation | None = None

    def to_json(self) -> JsonObject:
        """Return the JSON form; without ``evaluation`` where there was none."""
        fields = asdict(self) | {"positions": list(self.positions)}
        return fields if self.evaluation else {key: value for key, value in fields.items() if key != "evaluation"}

    @classmethod
    def from_json(cls, record: JsonObject) -> Self:
        """Decode the result of `to_json`."""
        evaluation = Evaluation(**record["evaluation"]) if "evaluation" in record else None
        start, stop = record["positions"]
        return cls(**{**record, "positions": (start, stop), "evaluation": evaluation})
