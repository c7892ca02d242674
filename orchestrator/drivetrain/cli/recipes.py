"""`drivetrain recipes`, `init`, `scaling-curve`."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path

from drivetrain_pipelines.errors import InputError

from drivetrain.cli.errors import errors
from drivetrain.cli.render import renderer
from drivetrain.job.recipes import copy_recipe, recipes


def list_recipes(as_json: bool) -> None:
    """`drivetrain recipes`."""
    for recipe in recipes():
        line = {"name": recipe.name, "title": recipe.title, "folder": str(recipe.folder)}
        print(json.dumps(line) if as_json else f"{recipe.name:<22} {recipe.title}")


def init(recipe: str, target: str) -> None:
    """`drivetrain init`."""
    with errors():
        copy_recipe(recipe, Path(target))
        folder = shlex.quote(target)
        print(f"{folder}/job.yaml is yours to change; then: drivetrain run {folder}")


def scaling_curve(
    job: str, overrides: list[str], fractions: str, picture: str | None, as_json: bool, address: str | None
) -> None:
    """`drivetrain scaling-curve`."""
    with errors():
        from drivetrain.api.scaling_curve import PowerLaw, draw, measure
        from drivetrain.job.loading import load_job  # here: a wrong job is told at once, without waiting for Ray

        name = load_job(job, overrides).spec.name
        target = Path(picture or f"{name}-scaling.png")
        if not target.absolute().parent.is_dir():
            raise InputError("--picture", repr(picture), "a file in a folder that is there")
        with renderer(as_json) as out:
            points = measure(job, overrides, _shares(fractions), address, out.show)
        law = PowerLaw.fit(points)
        draw(points, law, name, target)
        if as_json:
            print(json.dumps({"points": [asdict(p) for p in points], "law": asdict(law), "picture": str(target)}))
            return
        for point in points:
            print(f"{point.fraction:>7.3g} of the data  {point.samples:>9,} samples  eval loss {point.loss:.4f}")
        twice = 2 * points[-1].samples
        print(f"{law}, R² {law.r_squared:.4f}")
        print(f"twice the data, {twice:,} samples, would give {law.loss(twice):.4f}; drawn: {target}")


def _shares(fractions: str) -> list[float]:
    try:
        return [float(part) for part in fractions.split(",")]
    except ValueError as error:
        raise InputError("--fractions", repr(fractions), "numbers, such as 0.125,0.25,0.5,1") from error
