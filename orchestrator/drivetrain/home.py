"""Where Drivetrain keeps its things on this machine: one folder, ``DRIVETRAIN_HOME`` (default ``~/.drivetrain``)."""

from __future__ import annotations

import getpass
import os
from dataclasses import dataclass
from pathlib import Path

from drivetrain_workers.records.run_folder import RunFolder


@dataclass(frozen=True)
class Home:
    """The folder and its parts."""

    path: Path

    @classmethod
    def from_environment(cls) -> Home:
        """``DRIVETRAIN_HOME``, made if it is not there; private to the user, since job files may be."""
        path = Path(os.environ.get("DRIVETRAIN_HOME", "~/.drivetrain")).expanduser().resolve()
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return cls(path)

    @property
    def database_url(self) -> str:
        """``DRIVETRAIN_DATABASE_URL``, or SQLite in this folder."""
        return os.environ.get("DRIVETRAIN_DATABASE_URL") or f"sqlite:///{self.path / 'drivetrain.db'}"

    @property
    def coordinator_log(self) -> Path:
        """What the coordinator has decided, and why."""
        return self.path / "coordinator.log"

    @property
    def scheduling_rules(self) -> Path:
        """How runs share the cluster; the defaults where there is no such file."""
        return self.path / "scheduling.yaml"

    @property
    def datasets(self) -> Path:
        """Prepared datasets: ``name/version/``."""
        return self.path / "datasets"

    @property
    def downloads(self) -> Path:
        """Raw data that came from packages."""
        return self.path / "downloads"

    @property
    def files(self) -> Path:
        """Files that jobs name beside their data, by digest."""
        return self.path / "files"

    @property
    def packages(self) -> Path:
        """Job folders that were submitted, by digest."""
        return self.path / "packages"

    @property
    def token_file(self) -> Path:
        """A token for the server, for clients on this machine."""
        return self.path / "token"

    @property
    def mlflow_uri(self) -> str:
        """``MLFLOW_TRACKING_URI``, or the embedded default."""
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.path / 'mlflow.db'}"

    @property
    def mlflow_artifacts(self) -> Path:
        """Artifacts of the embedded default."""
        return self.path / "mlartifacts"

    def run(self, run_id: str) -> RunFolder:
        """Folder of a run."""
        return RunFolder(self.path / "runs" / run_id)


def user_name() -> str:
    """Who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        return str(os.getuid())
