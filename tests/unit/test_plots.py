"""Plots: each is created with the expected size, for any data; the content is not checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from drivetrain.accounting import plot as goodput_plot
from drivetrain.accounting.goodput import CLASSES, Timeline
from drivetrain.accounting.plot import draw_goodput
from drivetrain.scheduling import plot as scheduling_plot
from drivetrain.scheduling.simulation import Result
from drivetrain.tracking.loss_plots import draw_loss, draw_losses
from drivetrain.tracking.totals import Record
from PIL import Image

from tests.unit.runs import metrics


def size_of(path: Path) -> tuple[int, int]:
    """Return the size of a PNG that is not blank."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert len(np.unique(np.asarray(image.convert("L")))) > 2, "the image is blank"
        return image.size


def darkness(path: Path) -> int:
    """Count the pixels that are not white."""
    with Image.open(path) as image:
        return int((np.asarray(image.convert("L")) < 250).sum())


def losses(steps: int) -> list[Record]:
    trained = [metrics("train", step, loss=1.0 / step, step_s=0.5) for step in range(1, steps + 1)]
    nodes = [metrics("system/a", 1, cpu=3.0)]
    return [*trained, *nodes, metrics("eval", steps, eval_loss=0.5, eval_accuracy=0.9)]


def test_the_losses_of_a_run(tmp_path: Path) -> None:
    bare, whole = tmp_path / "bare.png", tmp_path / "whole.png"
    draw_loss(iter(losses(30)), None, "toy", bare)
    draw_loss(iter(losses(30)), 5.0, "toy", whole)
    assert size_of(bare) == size_of(whole) == (960, 540)
    assert bare.read_bytes() != whole.read_bytes(), "the entropy is a separate line"


@pytest.mark.parametrize("records", [[], [metrics("train", 1, step_s=1.0)], [metrics("train", 1, loss=float("nan"))]])
def test_a_run_that_has_logged_no_loss_has_a_picture(records: list[Record], tmp_path: Path) -> None:
    """It prints no warning on the terminal."""
    draw_loss(iter(records), None, "toy", tmp_path / "loss.png")
    assert size_of(tmp_path / "loss.png") == (960, 540)


def test_the_losses_of_several_runs(tmp_path: Path) -> None:
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    draw_losses({"a": iter(losses(30))}, one)
    draw_losses({"a": iter(losses(30)), "b": iter(losses(10))}, two)
    assert size_of(one) == size_of(two) == (960, 540)
    assert darkness(two) > darkness(one)
    draw_losses({"a": iter([])}, tmp_path / "none.png")
    assert size_of(tmp_path / "none.png") == (960, 540)


def timeline(seconds: dict[str, float]) -> Timeline:
    ends = 1000.0 + np.cumsum([0.0, *seconds.values()])
    return Timeline(ends[:-1], ends[1:], np.array([list(CLASSES).index(name) for name in seconds]))


@pytest.mark.parametrize(
    "seconds",
    [
        dict.fromkeys(CLASSES, 10.0),
        {"queued": 5e4, "computing": 5e5},
        {"queued": 60.0, "preparing": 3000.0, "saving": 0.001},
        {"preparing": 1e-6},
    ],
)
def test_where_the_time_has_gone(seconds: dict[str, float], tmp_path: Path) -> None:
    draw_goodput(timeline(seconds), "toy", tmp_path / "goodput.png")
    assert size_of(tmp_path / "goodput.png") == (1200, 540)


def test_a_run_of_no_time_has_a_picture(tmp_path: Path) -> None:
    none = np.empty(0)
    draw_goodput(Timeline(none, none, np.empty(0, np.int64)), "toy", tmp_path / "goodput.png")
    assert size_of(tmp_path / "goodput.png") == (1200, 540)


def test_every_class_of_time_has_a_color() -> None:
    assert goodput_plot._COLORS.keys() == CLASSES.keys()
    assert len(set(goodput_plot._COLORS.values())) == len(CLASSES)


def result(busy: list[tuple[float, float]]) -> Result:
    return Result(np.array([60.0, 7200.0]), np.array([0.0, 60.0]), 0, 0, np.array(busy))


def test_policies_side_by_side(tmp_path: Path) -> None:
    results = {"ours": result([(0, 0.5), (3600, 1.0), (7200, 0.0)]), "fifo": result([(0, 0.25), (9000, 0.0)])}
    scheduling_plot.draw(results, tmp_path / "policies.png")
    assert size_of(tmp_path / "policies.png") == (1320, 480)
    scheduling_plot.draw({"ours": result([(5.0, 0.0)])}, tmp_path / "nothing.png")
    assert size_of(tmp_path / "nothing.png") == (1320, 480)


def test_use_is_averaged_between_points() -> None:
    """Half an hour of full use and half an hour without use is 50 % use."""
    times, busy = np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.0, 0.0])
    found = scheduling_plot._mean_between(times, busy, np.array([0.0, 0.25, 0.5, 0.75, 1.0]))
    assert found.tolist() == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert scheduling_plot._mean_between(times, busy, np.array([0.0, 1.0]))[1] == 0.5
