"""A temporary git repository for tests."""

from __future__ import annotations

from pathlib import Path

import git


def make_repository(folder: Path) -> str:
    """Create a repository with one commit of all files in the folder; return the commit."""
    repository = git.Repo.init(folder)
    repository.git.add(".")
    who = git.Actor("Somebody", "somebody@localhost")
    return repository.index.commit("Begin", author=who, committer=who).hexsha
