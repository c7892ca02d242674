"""Where the parts of a run lie on storage. One place knows the names."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from drivetrain_pipelines.storage.checksums import JsonObject

from drivetrain_workers.spec import TrainJob

_CHECKPOINT = re.compile(r"^step-(\d{8,})\.g(\d{4,})$")


@dataclass(frozen=True, order=True)
class CheckpointId:
    """A checkpoint's name; the order is that of training."""

    step: int
    generation: int

    def folder(self, root: Path) -> Path:
        """Where it lies."""
        return root / f"step-{self.step:08d}.g{self.generation:04d}"

    @classmethod
    def parse(cls, name: str) -> CheckpointId | None:
        """None when ``name`` is not a checkpoint folder's."""
        match = _CHECKPOINT.match(name)
        return cls(int(match[1]), int(match[2])) if match else None


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run; reachable from every node of its gang."""

    path: Path

    @property
    def code(self) -> Path:
        """Snapshot of the job's folder: the user's code."""
        return self.path / "code"

    @property
    def checkpoints(self) -> Path:
        """Checkpoint folders."""
        return self.path / "checkpoints"

    @property
    def ledger(self) -> Path:
        """Per-step records: loss and the positions consumed."""
        return self.path / "ledger"

    @property
    def step_times(self) -> Path:
        """What each turn of the training loop was spent on."""
        return self.path / "times"

    @property
    def predictions(self) -> Path:
        """What the job's predictions were at evaluations."""
        return self.path / "predictions"

    @property
    def assessment(self) -> Path:
        """What the trained model is worth, and pictures of it."""
        return self.path / "assessment"

    @property
    def job_written(self) -> Path:
        """The job file as the user wrote it."""
        return self.path / "job.yaml"

    @property
    def job_resolved(self) -> Path:
        """The job as resolved: every default filled in, overrides applied."""
        return self.path / "resolved.json"

    @property
    def spool(self) -> Path:
        """Tracking records that are on their way to MLflow."""
        return self.path / "tracking"

    @property
    def adjustments(self) -> Path:
        """What the run has changed about itself."""
        return self.path / "adjustments.json"

    @property
    def online(self) -> Path:
        """Where the actors of the online transform can be reached."""
        return self.path / "online"

    @property
    def uncommitted(self) -> Path:
        """How the job's folder differed from the commit that git had of it, if git had one."""
        return self.path / "uncommitted.diff"

    @property
    def environment(self) -> Path:
        """Versions of what the run was begun with, and the commit of the job's folder, as JSON."""
        return self.path / "environment.json"

    def log(self, rank: int) -> Path:
        """Output of a rank's processes, over all generations."""
        return self.path / "logs" / f"rank-{rank}.log"

    def train_job(self) -> TrainJob:
        """Return the sections of the resolved job that training needs."""
        return TrainJob.model_validate_json(self.job_resolved.read_text())

    def resolved(self) -> JsonObject:
        """The resolved job as a dictionary."""
        return json.loads(self.job_resolved.read_text())  # type: ignore[no-any-return]  # written by us
