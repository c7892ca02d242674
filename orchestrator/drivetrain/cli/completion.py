"""Completions of the shell: run ids, jobs and recipes, keys of ``--set``. None of them loads Ray or SQLAlchemy."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from pydantic import BaseModel

_MAX_IDS = 50
_RECIPES = "drivetrain_workers.recipes"


def run_ids(incomplete: str) -> list[str]:
    """Return the newest runs of the local home whose ids begin so."""
    try:
        file = Path(os.environ.get("DRIVETRAIN_HOME") or "~/.drivetrain").expanduser().absolute() / "drivetrain.db"
        if os.environ.get("DRIVETRAIN_DATABASE_URL") or not file.exists():
            return []
    except (OSError, RuntimeError):
        return []
    query = "SELECT id FROM runs WHERE substr(id, 1, ?) = ? ORDER BY created DESC, id DESC LIMIT ?"
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
            return [row[0] for row in database.execute(query, (len(incomplete), incomplete, _MAX_IDS))]
    except (sqlite3.Error, UnicodeEncodeError):  # of another version, or locked: a completion is not worth an error
        return []


def recipe_names(incomplete: str) -> list[str]:
    """Return the names of recipes that begin so."""
    spec = find_spec(_RECIPES)
    folders = [Path(path) for path in (spec and spec.submodule_search_locations) or ()]
    names = sorted(job.parent.name.replace("_", "-") for folder in folders for job in folder.glob("*/job.yaml"))
    return [name for name in names if name.startswith(incomplete)]


def jobs(incomplete: str) -> list[str]:
    """Return recipes, and folders and YAML files, that begin so."""
    folder, _, name = incomplete.rpartition("/")
    prefix = f"{folder}/" if "/" in incomplete else ""
    try:
        found = sorted(Path(prefix or ".").expanduser().iterdir())
    except OSError:
        found = []
    paths = [
        f"{prefix}{path.name}{'/' * path.is_dir()}"
        for path in found
        if path.name.startswith(name) and (path.is_dir() or path.suffix in (".yaml", ".yml"))
    ]
    return recipe_names(incomplete) + [path for path in paths if name or not path.startswith(".")]


def job_keys(incomplete: str) -> list[str]:
    """Return the keys of a job that begin so, as ``section.key=``."""
    from drivetrain.job.spec import JobSpec  # here: only this completion waits for it

    return [key for key in _keys(JobSpec, "") if key.startswith(incomplete)]


def _keys(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        below = list(_sections(field.annotation))
        for each in below:
            yield from _keys(each, f"{prefix}{name}.")
        if not below:
            yield f"{prefix}{name}="


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the sections that an annotation is made of."""
    if isinstance(annotation, type) and hasattr(annotation, "model_fields"):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)
