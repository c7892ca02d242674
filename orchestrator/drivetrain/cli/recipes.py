"""`drivetrain recipes`, `init`, `scaling-curve`."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path

from drivetrain_pipelines.errors import InputError

from drivetrain.cli.errors import errors
from drivetrain.cli.render import renderer
from drivetrain.cli.tables import Column, print_table
from drivetrain.job.recipes import copy_recipe, recipes


def list_recipes(as_json: bool) -> None:
    """`drivetrain recipes`."""
    found = recipes()
    if as_json:
        for recipe in found:
            print(json.dumps({"name": recipe.name, "title": recipe.title, "folder": str(recipe.folder)}))
        return
    print_table((Column("recipe"), Column("title", wrap=True)), [(recipe.name, recipe.title) for recipe in found])


def init(recipe: str, target: str, as_json: bool) -> None:
    """`drivetrain init`."""
    with errors():
        copy_recipe(recipe, Path(target))
        if as_json:
            print(json.dumps({"recipe": recipe, "folder": str(Path(target).resolve())}))
            return
        folder = shlex.quote(target)
        print(f"Edit {folder}/job.yaml, then run: drivetrain run {folder}")


def scaling_curve(
    job: str, overrides: list[str], fractions: str, picture: str | None, as_json: bool, address: str | None
) -> None:
    """`drivetrain scaling-curve`."""
    with errors():
        from drivetrain.api.scaling_curve import PowerLaw, draw, measure
        from drivetrain.job.loading import load_job  # here: an invalid job is reported without waiting for Ray

        name = load_job(job, overrides).spec.name
        target = Path(picture or f"{name}-scaling.png")
        if not target.absolute().parent.is_dir():
            raise InputError("--picture", repr(picture), "a file in an existing folder")
        with renderer(as_json) as out:
            points = measure(job, overrides, _shares(fractions), address, out.show)
        law = PowerLaw.fit(points)
        draw(points, law, name, target)
        if as_json:
            print(json.dumps({"points": [asdict(p) for p in points], "law": asdict(law), "picture": str(target)}))
            return
        columns = [Column(title, right=True) for title in ("share of the data", "samples", "eval loss")]
        rows = [(f"{point.fraction:.3g}", f"{point.samples:,}", f"{point.loss:.4f}") for point in points]
        print_table(columns, rows)
        twice = 2 * points[-1].samples
        print(f"{law}, R² {law.r_squared:.4f}")
        print(f"prediction for twice the data, {twice:,} samples: {law.loss(twice):.4f}")
        print(f"plot: {target}")


def _shares(fractions: str) -> list[float]:
    try:
        return [float(part) for part in fractions.split(",")]
    except ValueError as error:
        raise InputError("--fractions", repr(fractions), "numbers, such as 0.125,0.25,0.5,1") from error
