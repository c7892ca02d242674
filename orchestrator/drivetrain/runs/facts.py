"""Facts of a run beyond its state; stored with the run and shown to users."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

from drivetrain_pipelines.storage.json_files import JsonObject


@dataclass(frozen=True)
class RunFacts:
    """Facts of a run. An unknown value is None or empty.

    Attributes:
        mlflow_uri: of the tracking server or database; the next two name the run there.
        gpus_per_worker: fixed at the start of the run.
        dataset: location of the dataset version ``dataset_version``; ``dataset_made`` is true if this run prepared it.
        counted_in: ``tokens`` or ``samples``: the unit of throughput.
        unigram_entropy: in nats per token; the baseline for a language model.
        skipped_records, skipped_first: number of invalid records that were skipped, and the first of them.
        data_notes: sentences about data that was left out.
        plan: the settings chosen by the plan, and its estimates.
        parameters: of the model.
        peak_bytes, base_bytes: peak memory of rank 0, and its memory without a model.
        checkpoint: folder of the newest checkpoint; ``stored`` is its URL in object storage.
        lost_at: time of the last loss of a rank, in seconds since the epoch.
        energy_from: how energy was measured.
        tokens_per_s: mean over all steps; ``step_s`` the median seconds of a step.
        picture, sample, assessment, account: content of the summary.
        problem: what is missing after the run has ended.
        reason, detail: why the run ended.
        tracked: whether the tracking server has received everything that it accepts; ``tracking_problem`` is its last
            error, ``tracking_notes`` what it has under another name or can never accept.
        released: whether the run has released all resources.
    """

    mlflow_uri: str = ""
    mlflow_experiment: str = ""
    mlflow_run_id: str = ""
    gpus_per_worker: int | None = None
    dataset: str | None = None
    dataset_version: str | None = None
    dataset_made: bool | None = None
    train_samples: int | None = None
    eval_samples: int | None = None
    counted_in: str = "tokens"
    unigram_entropy: float | None = None
    skipped_records: int = 0
    skipped_first: tuple[str, ...] = ()
    data_notes: tuple[str, ...] = ()
    plan: JsonObject | None = None
    parameters: int | None = None
    peak_bytes: int | None = None
    base_bytes: int | None = None
    checkpoint: str | None = None
    stored: str = ""
    lost_at: float | None = None
    energy_from: str = ""
    train_loss: float | None = None
    eval_loss: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    tokens_per_s: float | None = None
    step_s: float | None = None
    picture: str | None = None
    sample: str | None = None
    assessment: JsonObject | None = None
    account: JsonObject | None = None
    problem: str = ""
    reason: str = ""
    detail: str = ""
    tracked: bool | None = None
    tracking_problem: str = ""
    tracking_notes: tuple[str, ...] = ()
    released: bool = False

    def updated(self, **changes: Any) -> Self:
        """Return a copy with some facts changed. Raises TypeError for an unknown name."""
        return replace(self, **changes)

    def known(self) -> dict[str, Any]:
        """Return the known facts by name."""
        every = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in every.items() if value != _NOTHING[name]}

    def to_json(self) -> JsonObject:
        """Return the known facts as JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in self.known().items()}

    @classmethod
    def from_json(cls, record: JsonObject) -> Self:
        """Return the facts from the output of `to_json`; unknown names are ignored."""
        known = {name: value for name, value in record.items() if name in _NOTHING}
        known |= {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
        return cls(**known)


def mlflow_identity(facts: RunFacts) -> dict[str, str]:
    """Return what identifies the run in MLflow; empty before it exists there."""
    names = ("mlflow_uri", "mlflow_experiment", "mlflow_run_id")
    return {name: getattr(facts, name) for name in names} if facts.mlflow_run_id else {}


_NOTHING = {each.name: getattr(RunFacts(), each.name) for each in fields(RunFacts)}
