"""The job file as a whole."""

from __future__ import annotations

from typing import Literal

from drivetrain_pipelines.spec import DataSpec, Name, Spec
from drivetrain_workers.spec import CheckpointSpec, ModelSpec, TrainingSpec
from pydantic import Field


class ResourcesSpec(Spec):
    """What the run takes from the cluster."""

    workers: int = Field(2, ge=1, description="ranks; the world size")
    cpus_per_worker: int = Field(1, ge=1)
    gpus_per_worker: Literal["auto", 0, 1] = Field("auto", description="auto: 1 where the cluster has GPUs, else 0")
    preprocessors: int = Field(2, ge=1, description="preprocessing actors")


class TrackingSpec(Spec):
    """Where the run is logged. The tracking server itself is ``MLFLOW_TRACKING_URI``."""

    experiment: str | None = Field(None, description="MLflow experiment; the job's name by default")


class SampleSpec(Spec):
    """Text that a language model generates at the end of the run."""

    prompt: str = "The"
    max_tokens: int = Field(60, ge=1)


class JobSpec(Spec):
    """A run, fully described. With the data version, the code version and the seed it determines the result."""

    name: Name
    seed: int = Field(0, ge=0, lt=1 << 63)
    data: DataSpec
    model: ModelSpec
    training: TrainingSpec
    resources: ResourcesSpec = ResourcesSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    tracking: TrackingSpec = TrackingSpec()
    sample: SampleSpec | None = None
