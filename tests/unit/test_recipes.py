"""Recipes are listed, copied and valid; the power law is found in points that follow one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from drivetrain.api.scaling_curve import Point, PowerLaw, check_reading, draw
from drivetrain.errors import NotFoundError
from drivetrain.job.loading import load_job
from drivetrain.job.recipes import copy_recipe, recipes
from drivetrain_pipelines.errors import InputError
from drivetrain_workers.spec import TrainingSpec
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

NAMES = [recipe.name for recipe in recipes()]


def test_there_is_one_for_each_kind_of_deep_learning() -> None:
    assert len(NAMES) == 10
    assert all(recipe.title and not recipe.title.startswith("#") for recipe in recipes())


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_a_valid_job(name: str, tmp_path: Path) -> None:
    copy_recipe(name, tmp_path / "mine")
    copied, original = load_job(str(tmp_path / "mine")), load_job(name)
    assert copied.spec == original.spec
    assert copied.code_version == original.code_version
    assert (tmp_path / "mine" / "README.md").is_file()
    assert not list(tmp_path.rglob("__pycache__"))


def test_a_copy_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="a new or empty folder"):
        copy_recipe("speech", tmp_path)
    with pytest.raises(NotFoundError, match=r"no recipe 'speach'. Did you mean speech\? Known recipes: .*speech"):
        copy_recipe("speach", tmp_path / "new")


def test_the_power_law_is_found(tmp_path: Path) -> None:
    points = [Point(n / 8000, n, 12.0 * n**-0.31, f"run-{n}") for n in (1000, 2000, 4000, 8000)]
    law = PowerLaw.fit(points)
    assert (law.scale, law.exponent, law.r_squared) == pytest.approx((12.0, 0.31, 1.0))
    assert law.loss(16_000) == pytest.approx(12.0 * 16_000**-0.31)
    draw(points, law, "toy", tmp_path / "law.png")
    with Image.open(tmp_path / "law.png") as picture:
        assert np.asarray(picture).std() > 5


def test_a_bad_fit_has_a_low_r_squared() -> None:
    points = [Point(n / 8, n, loss, "run") for n, loss in ((1, 2.0), (2, 3.0), (4, 1.0), (8, 2.5))]
    assert PowerLaw.fit(points).r_squared < 0.5


@given(st.integers(1, 1000), st.integers(1, 64), st.integers(1, 10**5))
def test_fixed_steps_must_read_all_of_the_data(steps: int, batch: int, samples: int) -> None:
    training = TrainingSpec.model_validate({"steps": steps, "global_batch_size": batch})
    if steps * batch >= samples:
        check_reading(training, samples)
        return
    with pytest.raises(InputError, match=r"training\.steps: got .*training\.epochs=1\.0") as caught:
        check_reading(training, samples)
    least = int(caught.value.allowed.removeprefix("at least "))
    check_reading(TrainingSpec.model_validate({"steps": least, "global_batch_size": batch}), samples)
    check_reading(TrainingSpec.model_validate({"epochs": 1.0, "global_batch_size": batch}), samples)
