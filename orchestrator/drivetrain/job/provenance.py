"""The environment of a result: package versions and git state."""

from __future__ import annotations

import json
import platform
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

from drivetrain_pipelines.storage.json_files import atomic_write
from drivetrain_workers.records.run_folder import RunFolder
from pydantic import Field

from drivetrain.job.secret_names import SECRETS

_PACKAGES = ("drivetrain", "torch", "deepspeed", "numpy", "pyarrow", "ray", "transformers")
_COMMIT_KEY = "git commit"


@dataclass(frozen=True)
class GitState:
    """The git commit of a job's folder and its uncommitted changes; empty without git."""

    commit: Annotated[str, Field(pattern=r"^([0-9a-f]{40,64})?$")] = ""
    uncommitted: str = ""

    @classmethod
    def of(cls, folder: Path) -> GitState:
        """Return the git state of a folder in a repository, without files that may hold secrets."""
        try:
            import git  # the import fails without the git program
        except ImportError:
            return cls()
        try:
            repository = git.Repo(folder, search_parent_directories=True)
            no_secrets = [f":(exclude,top,glob)**/{name}" for name in SECRETS]
            difference = repository.git.diff("HEAD", "--", str(folder), *no_secrets)
            return cls(repository.head.commit.hexsha, difference.encode(errors="replace").decode())
        except (git.GitError, ValueError):  # no repository, or no commit
            return cls()


def save_environment(folder: RunFolder, git: GitState) -> None:
    """Store package versions and git state in the folder of a new run."""
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
    """Return the package versions at the start of a run, by name."""
    versions: dict[str, str] = json.loads(folder.environment.read_text())
    return versions


def load_git_state(folder: RunFolder) -> GitState:
    """Return the git state of the code at the start of a run."""
    return GitState(load_environment(folder).get(_COMMIT_KEY, ""), folder.uncommitted.read_text())
