"""The files of a run. Their names are defined only here."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from drivetrain_pipelines.storage.json_files import JsonObject

from drivetrain_workers.spec import TrainJob

_CHECKPOINT = re.compile(r"^step-(\d{8,})\.g(\d{4,})$")


@dataclass(frozen=True, order=True)
class CheckpointId:
    """Name of a checkpoint; ordered by step and generation."""

    step: int
    generation: int

    def folder(self, root: Path) -> Path:
        """Return the path of the checkpoint."""
        return root / f"step-{self.step:08d}.g{self.generation:04d}"

    @classmethod
    def parse(cls, name: str) -> CheckpointId | None:
        """Parse a name; None when ``name`` is not the name of a checkpoint folder."""
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
    def code_list(self) -> Path:
        """Names of the files of the code, and of what is not part of it."""
        return self.path / "code.json"

    @property
    def code_version(self) -> Path:
        """Digest of the code."""
        return self.path / "code_version"

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
        """Times of each iteration of the training loop."""
        return self.path / "times"

    @property
    def predictions(self) -> Path:
        """Predictions of the job at evaluations."""
        return self.path / "predictions"

    @property
    def assessment(self) -> Path:
        """Assessment of the trained model, with figures."""
        return self.path / "assessment"

    @property
    def job_written(self) -> Path:
        """The job file as the user wrote it."""
        return self.path / "job.yaml"

    @property
    def job_resolved(self) -> Path:
        """The resolved job: with every default, overrides applied."""
        return self.path / "resolved.json"

    @property
    def spool(self) -> Path:
        """Tracking records that are not yet in MLflow."""
        return self.path / "tracking"

    @property
    def adjustments(self) -> Path:
        """Changes of the run to its job."""
        return self.path / "adjustments.json"

    @property
    def online(self) -> Path:
        """Addresses of the actors of the online transform."""
        return self.path / "online"

    @property
    def uncommitted(self) -> Path:
        """Difference of the job's folder from its git commit, if it is in a repository."""
        return self.path / "uncommitted.diff"

    @property
    def environment(self) -> Path:
        """Versions of the environment at the start of the run, and the commit of the job's folder, as JSON."""
        return self.path / "environment.json"

    def log(self, rank: int) -> Path:
        """Return the log file of a rank's processes, over all generations."""
        return self.path / "logs" / f"rank-{rank}.log"

    def train_job(self) -> TrainJob:
        """Return the sections of the resolved job that training needs."""
        return TrainJob.model_validate_json(self.job_resolved.read_text())

    def resolved(self) -> JsonObject:
        """Return the resolved job as a dictionary."""
        return json.loads(self.job_resolved.read_text())  # type: ignore[no-any-return]  # we wrote it
