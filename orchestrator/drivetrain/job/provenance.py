"""What a result may depend on besides job, code and data."""

from __future__ import annotations

import json
import platform
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

from drivetrain_pipelines.storage.checksums import atomic_write
from drivetrain_workers.records.run_folder import RunFolder
from pydantic import Field

from drivetrain.job.bundle import SECRETS

_PACKAGES = ("drivetrain", "torch", "deepspeed", "numpy", "pyarrow", "ray", "transformers")
_COMMIT_KEY = "git commit"


@dataclass(frozen=True)
class GitState:
    """What git knows of a job's folder: the commit it stands at, and how it differs from that; empty without git."""

    commit: Annotated[str, Field(pattern=r"^([0-9a-f]{40,64})?$")] = ""
    uncommitted: str = ""

    @classmethod
    def of(cls, folder: Path) -> GitState:
        """Of a folder anywhere in a repository. What is called like a secret is left out."""
        try:
            import git  # refuses to be imported where there is no git
        except ImportError:
            return cls()
        try:
            repository = git.Repo(folder, search_parent_directories=True)
            no_secrets = [f":(exclude,top,glob)**/{name}" for name in SECRETS]
            difference = repository.git.diff("HEAD", "--", str(folder), *no_secrets)
            return cls(repository.head.commit.hexsha, difference.encode(errors="replace").decode())
        except (git.GitError, ValueError):  # no repository, or one without a commit
            return cls()


def save_environment(folder: RunFolder, git: GitState) -> None:
    """Write down, in a new run's folder, what it is begun with."""
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    if git.commit:
        versions[_COMMIT_KEY] = git.commit
    for path, text in ((folder.environment, json.dumps(versions, indent=2)), (folder.uncommitted, git.uncommitted)):
        with atomic_write(path) as sink:
            sink.write(text.encode())


def load_environment(folder: RunFolder) -> dict[str, str]:
    """Return the versions, by name, that a run was started with."""
    versions: dict[str, str] = json.loads(folder.environment.read_text())
    return versions


def load_git_state(folder: RunFolder) -> GitState:
    """What git knew of a run's code when it was begun."""
    return GitState(load_environment(folder).get(_COMMIT_KEY, ""), folder.uncommitted.read_text())
