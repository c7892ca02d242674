"""Drivetrain's folder on this machine: ``DRIVETRAIN_HOME`` (default ``~/.drivetrain``)."""

from __future__ import annotations

import getpass
import os
from dataclasses import dataclass
from pathlib import Path

from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.storage.paths import sqlite_url
from drivetrain_workers.records.run_folder import RunFolder

_VARIABLE, _DEFAULT = "DRIVETRAIN_HOME", "~/.drivetrain"
_ALLOWED = "a folder in which this user can write"


@dataclass(frozen=True)
class Home:
    """The home folder and its content."""

    path: Path

    @classmethod
    def from_environment(cls) -> Home:
        """Return the home of ``DRIVETRAIN_HOME``; create it if necessary, readable by the user only.

        Raises:
            InputError: it cannot be a folder in which this user can write.
        """
        given = os.environ.get(_VARIABLE) or _DEFAULT
        try:
            path = cls.path_of_environment()
            str(path).encode()
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except UnicodeEncodeError as error:
            raise InputError(
                _VARIABLE, repr(given), "a path in UTF-8", "Or set LC_ALL=C.UTF-8 for this one."
            ) from error
        except RuntimeError as error:  # of `expanduser`: no such user, or no home folder of this one
            raise InputError(_VARIABLE, repr(given), _ALLOWED, f"{error}") from error
        except OSError as error:
            raise InputError(
                _VARIABLE, repr(given), _ALLOWED, f"{error.strerror}: {error.filename or given}"
            ) from error
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise InputError(_VARIABLE, repr(str(path)), _ALLOWED, "It is read-only, or belongs to another user.")
        return cls(path)

    @staticmethod
    def path_of_environment() -> Path:
        """Return the path that `from_environment` creates."""
        return Path(os.environ.get(_VARIABLE) or _DEFAULT).expanduser().resolve()

    @property
    def database_url(self) -> str:
        """``DRIVETRAIN_DATABASE_URL``, or a SQLite database in this folder."""
        return os.environ.get("DRIVETRAIN_DATABASE_URL") or sqlite_url(self.path / "drivetrain.db")

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
        return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_url(self.path / "mlflow.db")

    @property
    def mlflow_artifacts(self) -> Path:
        """Artifacts of the embedded database."""
        return self.path / "mlartifacts"

    @property
    def ray_address(self) -> Path:
        """Address of the Ray cluster of a server with this home, while it runs."""
        return self.path / "ray-address"

    @property
    def ray_messages(self) -> Path:
        """Messages of Ray that are of no use on a terminal."""
        return self.path / "ray-messages.log"

    def run(self, run_id: str) -> RunFolder:
        """Return the folder of a run."""
        return RunFolder(self.path / "runs" / run_id)


def user_name() -> str:
    """Return the name of the user who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        return str(os.getuid())
