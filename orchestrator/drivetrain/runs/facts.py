"""What a run has found out about itself, by name; stored with the run and shown to everyone who asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

from drivetrain_pipelines.storage.checksums import JsonObject


@dataclass(frozen=True)
class RunFacts:
    """Facts of a run. A value that is not known yet is None, or empty.

    Attributes:
        mlflow_uri: of the tracking server or database; the next two name the run there.
        gpus_per_worker: fixed when the run begins.
        dataset: location of the dataset version ``dataset_version``; ``dataset_made`` if this run has prepared it.
        counted_in: ``tokens`` or ``samples``: the unit of throughput.
        unigram_entropy: nats per token, which a language model must beat.
        skipped_records, skipped_first: how many bad records were skipped, and the first of them.
        plan: the settings that the plan has chosen, and what it has estimated.
        parameters: of the model.
        peak_bytes, base_bytes: memory of rank 0 at most, and before there was a model.
        checkpoint: folder of the newest one; ``stored`` its URL in object storage.
        lost_at: when a rank was lost last, in seconds since the epoch.
        energy_from: how energy was measured.
        tokens_per_s: mean over all steps; ``step_s`` the median seconds of a step.
        picture, sample, assessment, account: what the summary shows.
        problem: what is missing although the run has ended.
        reason, detail: why the run has ended.
        tracked: whether the tracking server has everything; ``tracking_problem`` is its last error.
        released: whether the run holds nothing any more.
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
    released: bool = False

    def updated(self, **changes: Any) -> Self:
        """Return these facts with some changed. Raises TypeError for a name that is no fact."""
        return replace(self, **changes)

    def known(self) -> dict[str, Any]:
        """Return the facts that are known, by name."""
        every = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in every.items() if value != _NOTHING[name]}

    def to_json(self) -> JsonObject:
        """Return the facts that are known, as JSON has them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in self.known().items()}

    @classmethod
    def from_json(cls, record: JsonObject) -> Self:
        """Return the facts of `to_json`; names that this version does not know are ignored."""
        known = {name: value for name, value in record.items() if name in _NOTHING}
        if "skipped_first" in known:
            known["skipped_first"] = tuple(known["skipped_first"])
        return cls(**known)


_NOTHING = {each.name: getattr(RunFacts(), each.name) for each in fields(RunFacts)}
