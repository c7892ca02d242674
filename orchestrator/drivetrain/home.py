"""Drivetrain's folder on this machine: ``DRIVETRAIN_HOME`` (default ``~/.drivetrain``)."""

from __future__ import annotations

import getpass
import os
from dataclasses import dataclass
from pathlib import Path

from drivetrain_workers.records.run_folder import RunFolder


@dataclass(frozen=True)
class Home:
    """The home folder and its content."""

    path: Path

    @classmethod
    def from_environment(cls) -> Home:
        """Return the home of ``DRIVETRAIN_HOME``; create it if necessary, readable by the user only."""
        path = cls.path_of_environment()
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return cls(path)

    @staticmethod
    def path_of_environment() -> Path:
        """Return the path that `from_environment` creates."""
        return Path(os.environ.get("DRIVETRAIN_HOME", "~/.drivetrain")).expanduser().resolve()

    @property
    def database_url(self) -> str:
        """``DRIVETRAIN_DATABASE_URL``, or a SQLite database in this folder."""
        return os.environ.get("DRIVETRAIN_DATABASE_URL") or f"sqlite:///{self.path / 'drivetrain.db'}"

    @property
    def coordinator_log(self) -> Path:
        """Log of the coordinator's decisions and their reasons."""
        return self.path / "coordinator.log"

    @property
    def scheduling_rules(self) -> Path:
        """Rules of the scheduler; without this file the defaults apply."""
        return self.path / "scheduling.yaml"

    @property
    def datasets(self) -> Path:
        """Prepared datasets: ``name/version/``."""
        return self.path / "datasets"

    @property
    def downloads(self) -> Path:
        """Raw data from packages."""
        return self.path / "downloads"

    @property
    def files(self) -> Path:
        """Files named in jobs, other than data, by digest."""
        return self.path / "files"

    @property
    def packages(self) -> Path:
        """Submitted job folders, by digest."""
        return self.path / "packages"

    @property
    def token_file(self) -> Path:
        """Server token for clients on this machine."""
        return self.path / "token"

    @property
    def mlflow_uri(self) -> str:
        """``MLFLOW_TRACKING_URI``, or the embedded database."""
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.path / 'mlflow.db'}"

    @property
    def mlflow_artifacts(self) -> Path:
        """Artifacts of the embedded database."""
        return self.path / "mlartifacts"

    def run(self, run_id: str) -> RunFolder:
        """Return the folder of a run."""
        return RunFolder(self.path / "runs" / run_id)


def user_name() -> str:
    """Return the name of the user who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        return str(os.getuid())
