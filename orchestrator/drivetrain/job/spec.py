"""The job file as a whole."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from drivetrain_pipelines.spec import DataSpec, Name, Spec
from drivetrain_pipelines.storage.checksums import JsonObject
from drivetrain_workers.records.run_folder import RunFolder
from drivetrain_workers.spec import Baseline, CheckpointSpec, ModelSpec, SampleSpec, TrainingSpec
from pydantic import Discriminator, Field, Tag, model_validator

from drivetrain.scheduling.rules import DEFAULT_QUEUE


class WorkersRange(Spec):
    """An elastic gang: it starts with the available workers and scales up later, without changing the samples."""

    min: int = Field(ge=1)
    max: int = Field(ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> WorkersRange:
        if self.min > self.max:
            raise ValueError(f"min <= max; {self.min} > {self.max}")
        return self


def _one_or_range(workers: object) -> str:
    return "range" if isinstance(workers, dict | WorkersRange) else "int"


Workers = Annotated[
    Annotated[int, Field(ge=1), Tag("int")] | Annotated[WorkersRange, Tag("range")],
    Discriminator(_one_or_range),  # selects the form to which an error message refers
]


class ResourcesSpec(Spec):
    """Resources of the run."""

    workers: Workers = Field(2, description="ranks; the world size")
    cpus_per_worker: int = Field(1, ge=1)
    gpus_per_worker: Literal["auto", 0, 1] = Field("auto", description="auto: 1 where the cluster has GPUs, else 0")
    preprocessors: int = Field(2, ge=1, description="preprocessing actors")
    price_per_hour: float | None = Field(None, ge=0, description="dollars per worker")
    co2_g_per_kwh: float = Field(
        445.0, ge=0, description="carbon intensity of the grid; default: world average of 2024"
    )

    @property
    def max_workers(self) -> int:
        """Maximum number of workers."""
        return self.workers if isinstance(self.workers, int) else self.workers.max

    @property
    def min_workers(self) -> int:
        """Minimum number of workers."""
        return self.workers if isinstance(self.workers, int) else self.workers.min


class SchedulingSpec(Spec):
    """Scheduling of the run."""

    queue: Name = DEFAULT_QUEUE
    priority: int = Field(0, ge=-100, le=100, description="higher values run first and may preempt")
    expected_hours: float | None = Field(
        None, gt=0, description="estimated run time, used until the run has measured it"
    )
    preemptible: bool = Field(True, description="whether a run of higher priority may stop it, with a checkpoint")


class TrackingSpec(Spec):
    """Tracking of the run. ``MLFLOW_TRACKING_URI`` selects the tracking server."""

    experiment: str | None = Field(None, description="MLflow experiment; the job's name by default")
    register_as: Name | None = Field(None, description="registered model that receives the trained model as a version")


class BudgetSpec(Spec):
    """Limits of the run; when one is reached, the run saves and ends. A resume by a user resets them."""

    hours: float | None = Field(None, gt=0, description="hours with an allocation")
    dollars: float | None = Field(None, gt=0, description="at resources.price_per_hour")
    energy_kwh: float | None = Field(None, gt=0)


class JobSpec(Spec):
    """The complete description of a run. With data version, code version and seed it determines the result."""

    name: Name
    seed: int = Field(0, ge=0, lt=1 << 63)
    data: DataSpec
    model: ModelSpec
    training: TrainingSpec
    resources: ResourcesSpec = ResourcesSpec()
    scheduling: SchedulingSpec = SchedulingSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    tracking: TrackingSpec = TrackingSpec()
    budget: BudgetSpec = BudgetSpec()
    sample: SampleSpec | None = None
    baseline: Baseline = Field(False, description="train a classic method on the same split for comparison")
    explain: bool = Field(False, description="plot attributions by integrated gradients")

    @property
    def assessed(self) -> bool:
        """Whether the trained model is assessed at the end."""
        wanted = self.baseline is not False or self.explain
        return wanted or self.model.outcomes is not None or self.model.assess is not None

    @property
    def standard_baseline(self) -> bool:
        """Whether the baseline is the standard method for the data, not a function of the job."""
        baseline = self.baseline
        return baseline if isinstance(baseline, bool) else baseline.function is None

    @model_validator(mode="after")
    def _budget_needs_a_price(self) -> JobSpec:
        if self.budget.dollars is not None and self.resources.price_per_hour is None:
            raise ValueError("budget.dollars needs resources.price_per_hour")
        return self


def stored_spec(folder: RunFolder) -> JobSpec:
    """Return the resolved job of a run; each file is parsed once per process."""
    found = folder.job_resolved.stat()
    return _parsed(folder.job_resolved, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=256)
def _parsed(path: Path, *_version: int) -> JobSpec:  # preparation may replace the file, which changes its version
    return JobSpec.model_validate_json(path.read_text())


def flatten(section: JsonObject, prefix: str = "") -> JsonObject:
    """Convert nested sections to dotted keys for MLflow."""
    flat: JsonObject = {}
    for key, value in section.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
