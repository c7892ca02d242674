"""The bundled recipes: jobs to run as they are, or to copy and change."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from drivetrain_pipelines.errors import InputError

from drivetrain.errors import NotFoundError
from drivetrain.job.loading import recipes_folder


@dataclass(frozen=True)
class Recipe:
    """A folder with ``job.yaml``, its code, and ``README.md``.

    Attributes:
        name: as `drivetrain run` takes it.
        title: of its README.
    """

    name: str
    title: str
    folder: Path


def recipes() -> list[Recipe]:
    """Return all recipes, sorted by name."""
    folders = sorted(path.parent for path in recipes_folder().glob("*/job.yaml"))
    return [Recipe(folder.name.replace("_", "-"), _title(folder / "README.md"), folder) for folder in folders]


def copy_recipe(name: str, target: Path) -> None:
    """Copy a recipe into a new or empty folder.

    Raises:
        NotFoundError: there is no such recipe.
        InputError: the folder is not empty.
    """
    found = {recipe.name: recipe for recipe in recipes()}
    if name not in found:
        raise NotFoundError("recipe", name, list(found))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError("DIR", repr(str(target)), "a new or empty folder")
    shutil.copytree(found[name].folder, target, ignore=shutil.ignore_patterns("__*"), dirs_exist_ok=True)


def _title(page: Path) -> str:
    return page.read_text("utf-8").splitlines()[0].removeprefix("# ")
