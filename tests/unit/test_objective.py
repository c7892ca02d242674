from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drivetrain_pipelines.errors import InputError
from drivetrain_workers.modeling.context import TrainContext
from drivetrain_workers.modeling.objective import Objective, row_weight
from drivetrain_workers.records.predictions import write_predictions
from drivetrain_workers.spec import BestSpec
from PIL import Image
from torch import nn

BATCH = {"x": torch.zeros(3, 2)}


def context(first: int, last: int, step: int = 4, seed: int = 1, training: bool = True) -> TrainContext:
    return TrainContext(step, 10, training, 0, 1, seed, torch.arange(first, last))


def test_random_numbers_belong_to_the_sample() -> None:
    """A sample gets the same numbers in any batch; other seeds, steps and draws give other numbers."""
    whole = context(0, 6).normal(2, 5)
    assert whole.shape == (6, 2, 5)
    assert torch.equal(whole[2:], context(2, 6).normal(2, 5))
    others = [context(0, 6, seed=2), context(0, 6, step=5), context(1, 7), context(0, 6, training=False)]
    again = context(0, 6)
    again.uniform(1)
    for other in [*others, again]:
        assert not torch.isclose(other.normal(2, 5), whole).any()
    evaluations = [context(0, 6, step=step, training=False).uniform(3) for step in (0, 9)]
    assert torch.equal(*evaluations)  # otherwise eval losses of different steps could not be compared


def test_random_numbers_have_their_distribution() -> None:
    uniform, normal = context(0, 500).uniform(400), context(0, 500).normal(400)
    counts = torch.histc(uniform, 10, 0, 1)
    assert (counts - 20_000).abs().max() < 600  # more than four standard deviations of 134
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert torch.isfinite(normal).all()
    assert normal.mean().abs() < 0.01
    assert (normal.std() - 1).abs() < 0.01
    assert (normal.pow(4).mean() - 3).abs() < 0.1
    correlation = np.corrcoef(normal[:50].numpy())
    assert np.abs(correlation - np.eye(50)).max() < 0.25  # between rows: five standard deviations of 0.05


def test_metrics_are_means_or_pairs() -> None:
    def metrics(model: nn.Module, batch: dict[str, Any], context: TrainContext) -> dict[str, Any]:
        return {"mean": torch.tensor(0.5), "pair": (torch.tensor(2), 7), "step": context.step}

    objective = Objective(lambda model, batch: torch.zeros(()), row_weight, metrics)
    found = objective.metrics(nn.Identity(), BATCH, 3.0, context(0, 3))
    assert found == {"mean": (1.5, 3.0), "pair": (2.0, 7.0), "step": (12.0, 3.0)}


def test_a_mean_over_no_rows_is_ignored() -> None:
    """The job's function may return any number for no rows."""
    objective = Objective(lambda model, batch: torch.zeros(()), row_weight, lambda model, batch: {"a": math.nan})
    assert objective.metrics(nn.Identity(), BATCH, 0.0, context(0, 3)) == {"a": (0.0, 0.0)}


def test_a_metric_cannot_have_the_name_of_the_loss() -> None:
    objective = Objective(lambda model, batch: torch.zeros(()), row_weight, lambda model, batch: {"loss": 1.0})
    with pytest.raises(InputError, match=r"model\.metrics: got the name 'loss'"):
        objective.metrics(nn.Identity(), BATCH, 3.0, context(0, 3))


@pytest.mark.parametrize(
    "returned",
    [
        0.5,
        None,
        ["a"],
        {1: 0.5},
        {"a": "0.5"},
        {"a": "much"},
        {"a": None},
        {"a": 1 + 2j},
        {"a": 10**400},
        {"a": (1, 2, 3)},
        {"a": (1,)},
        {"a": (1, "2")},
        {"a": torch.zeros(3)},
        {"a": torch.zeros(0)},
        {"a": (torch.zeros(3), 2)},
        {"a": np.zeros((2, 2))},
        {"a": {"b": 1.0}},
    ],
)
def test_invalid_metrics_are_rejected(returned: Any) -> None:
    """In one sentence, whatever the value: also one that float() reads or torch refuses."""
    objective = Objective(lambda model, batch: torch.zeros(()), row_weight, lambda model, batch: returned)
    with pytest.raises(InputError, match=r"model\.metrics: got a function that returned"):
        objective.metrics(nn.Identity(), BATCH, 3.0, context(0, 3))


@pytest.mark.parametrize("value", [0.5, 1, True, np.float32(0.5), np.ones((1, 1)), torch.ones(1, 1), torch.tensor(3)])
def test_every_kind_of_one_number_is_a_metric(value: Any) -> None:
    objective = Objective(lambda model, batch: torch.zeros(()), row_weight, lambda model, batch: {"a": value})
    assert objective.metrics(nn.Identity(), BATCH, 3.0, context(0, 3)) == {
        "a": (3.0 * torch.as_tensor(value).item(), 3.0)
    }


@pytest.mark.parametrize("returned", [0.5, {"a": 1}, {"a": [1, 2]}, {"a": torch.zeros(())}, [1, 2, 3]])
def test_invalid_predictions_are_rejected(returned: Any) -> None:
    objective = Objective(lambda model, batch: torch.zeros(()), row_weight, predict=lambda model, batch: returned)
    with pytest.raises(InputError, match=r"model\.predict.*a dictionary of columns of 3 values"):
        objective.predict(nn.Identity(), BATCH, context(0, 3))


def test_predictions_are_a_table_and_pictures(tmp_path: Path) -> None:
    pictures = torch.arange(5, dtype=torch.uint8)[:, None, None].expand(5, 4, 6).contiguous()
    columns = {"said": ["a", "b", "c", "d", "ä"], "right": torch.tensor([1.0, 0, 0, 1, 1]), "seen": pictures}
    table, picture = sorted(write_predictions(tmp_path / "new", 20, columns))[::-1]
    assert table.name == "step-00000020.json"
    read = json.loads(table.read_text())
    assert read == {"columns": ["said", "right"], "data": [["a", 1.0], ["b", 0], ["c", 0], ["d", 1.0], ["ä", 1.0]]}
    pixels = np.asarray(Image.open(picture))
    assert pixels.shape == (16, 14)  # three down, two across, a gap of two between
    assert pixels[0, 8] == 1
    assert pixels[6, 0] == 2
    assert pixels[15, 13] == 255  # there is no sixth image


def test_the_best_is_chosen_by_a_metric() -> None:
    assert BestSpec().score(2.0, {"accuracy": 0.5}) == 2.0
    assert BestSpec(metric="accuracy", mode="max").score(2.0, {"accuracy": 0.5}) == -0.5
    with pytest.raises(InputError, match=r"training.best.metric: got 'f1'; allowed: accuracy, loss"):
        BestSpec(metric="f1").score(2.0, {"accuracy": 0.5})
