"""The job file as a whole."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from drivetrain_pipelines.spec import DataSpec, Name, Spec
from drivetrain_pipelines.storage.json_files import JsonObject
from drivetrain_workers.records.run_folder import RunFolder
from drivetrain_workers.spec import Baseline, CheckpointSpec, ModelSpec, SampleSpec, TrainingSpec
from pydantic import Discriminator, Field, Tag, model_validator

from drivetrain.scheduling.rules import DEFAULT_QUEUE


class WorkersRange(Spec):
    """Size of an elastic gang: it starts with the available workers and grows if that saves time."""

    min: int = Field(ge=1, description="Smallest number of workers that the run starts with.")
    max: int = Field(ge=1, description="Largest number of workers that the run uses.")

    @model_validator(mode="after")
    def _ordered(self) -> WorkersRange:
        if self.min > self.max:
            raise ValueError(f"min <= max; {self.min} > {self.max}")
        return self


def _one_or_range(workers: object) -> str:
    return "range" if isinstance(workers, dict | WorkersRange) else "int"


Workers = Annotated[
    Annotated[int, Field(ge=1), Tag("int")] | Annotated[WorkersRange, Tag("range")],
    Discriminator(_one_or_range),  # an error names the form that the user meant
]


class ResourcesSpec(Spec):
    """Resources that the run requests from the cluster."""

    workers: Workers = Field(
        2, description="Number of workers (ranks), or `{min: N, max: M}` for an elastic run. See `scheduling.md`."
    )
    cpus_per_worker: int = Field(1, ge=1, description="CPUs of each worker.")
    gpus_per_worker: Literal["auto", 0, 1] = Field(
        "auto", description="GPUs of each worker. `auto`: 1 if the cluster has GPUs when the run starts, otherwise 0."
    )
    preprocessors: int = Field(2, ge=1, description="Number of preprocessing actors.")
    price_per_hour: float | None = Field(
        None, ge=0, description="Price of one worker in dollars. Without it, no cost in dollars is reported."
    )
    co2_g_per_kwh: float = Field(
        445.0, ge=0, description="Carbon intensity of the grid, in g/kWh. Default: world mean of 2024."
    )

    @property
    def max_workers(self) -> int:
        """Largest number of workers."""
        return self.workers if isinstance(self.workers, int) else self.workers.max

    @property
    def min_workers(self) -> int:
        """Smallest number of workers."""
        return self.workers if isinstance(self.workers, int) else self.workers.min


class SchedulingSpec(Spec):
    """How the run shares the cluster with other runs."""

    queue: Name = Field(DEFAULT_QUEUE, description="Queue of the run.")
    priority: int = Field(
        0, ge=-100, le=100, description="Priority. Higher ones are scheduled first and may preempt lower ones."
    )
    expected_hours: float | None = Field(
        None, gt=0, description="Expected duration, used for backfill until the run has measured its own speed."
    )
    preemptible: bool = Field(
        True, description="Whether a run of higher priority may stop this one, after a checkpoint."
    )


class TrackingSpec(Spec):
    """Where the run is logged. ``MLFLOW_TRACKING_URI`` names the tracking server."""

    renamed: ClassVar[dict[str, str]] = {"register_as": "registered_model"}

    experiment: str | None = Field(
        None, min_length=1, max_length=500, description="MLflow experiment. Default: the name of the job."
    )
    registered_model: Name | None = Field(
        None, description="Registered model of MLflow. The trained model becomes a version of it."
    )


class BudgetSpec(Spec):
    """Limits on the cost of the run. At a limit the run saves and ends; resuming it grants the same amount again."""

    hours: float | None = Field(None, gt=0, description="Maximum hours with an allocation on the cluster.")
    dollars: float | None = Field(None, gt=0, description="Maximum cost in dollars, at `resources.price_per_hour`.")
    energy_kwh: float | None = Field(None, gt=0, description="Maximum energy in kWh.")


class JobSpec(Spec):
    """A complete job. With the data version, the code version and the seed it determines the result."""

    name: Name = Field(description="Name of the job. Run ids begin with it.")
    seed: int = Field(0, ge=0, lt=1 << 63, description="Seed of weights, sample order and transforms.")
    data: DataSpec = Field(description="Training and evaluation data.")
    model: ModelSpec = Field(description="Network and its functions.")
    training: TrainingSpec = Field(description="Steps, batch size, optimizer, precision, evaluation.")
    resources: ResourcesSpec = Field(ResourcesSpec(), description="Workers, CPUs, GPUs.")
    scheduling: SchedulingSpec = Field(SchedulingSpec(), description="Queue and priority on a shared cluster.")
    checkpoint: CheckpointSpec = Field(CheckpointSpec(), description="When checkpoints are written and kept.")
    tracking: TrackingSpec = Field(TrackingSpec(), description="MLflow experiment and registered model.")
    budget: BudgetSpec = Field(BudgetSpec(), description="Limits on hours, dollars and energy.")
    sample: SampleSpec | None = Field(None, description="Text to generate at the end of the run.")
    baseline: Baseline = Field(
        False, description="Also train a classic method on the same split and compare. `true` selects one by the data."
    )
    explain: bool = Field(False, description="Plot the integrated gradients of four decisions of the trained model.")

    @property
    def assessed(self) -> bool:
        """Whether the trained model is assessed at the end."""
        wanted = self.baseline is not False or self.explain
        return wanted or self.model.outcomes is not None or self.model.assess is not None

    @property
    def standard_baseline(self) -> bool:
        """Whether the comparison uses the standard method for the data, not a function of the job."""
        baseline = self.baseline
        return baseline if isinstance(baseline, bool) else baseline.function is None

    @model_validator(mode="after")
    def _budget_needs_a_price(self) -> JobSpec:
        if self.budget.dollars is not None and self.resources.price_per_hour is None:
            raise ValueError("budget.dollars needs resources.price_per_hour")
        return self


def stored_spec(folder: RunFolder) -> JobSpec:
    """Return the resolved job of a run; the same file is parsed once per process."""
    found = folder.job_resolved.stat()
    return _parsed(folder.job_resolved, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=256)
def _parsed(path: Path, *_version: int) -> JobSpec:  # preparing resolves the file further, which changes its version
    return JobSpec.model_validate_json(path.read_text())


def flatten(section: JsonObject, prefix: str = "") -> JsonObject:
    """Return nested sections as dotted keys, as MLflow shows them."""
    flat: JsonObject = {}
    for key, value in section.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
