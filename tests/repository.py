"""A git repository of a test's own."""

from __future__ import annotations

from pathlib import Path

import git


def make_repository(folder: Path) -> str:
    """A repository with one commit of all that is in the folder; returns the commit."""
    repository = git.Repo.init(folder)
    repository.git.add(".")
    who = git.Actor("Somebody", "somebody@localhost")
    return repository.index.commit("Begin", author=who, committer=who).hexsha
