"""Scores and baselines compared with scikit-learn and exact results; attributions where the model looks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.prepare.tokenizer import train_tokenizer
from drivetrain_workers import classification
from drivetrain_workers.assessment.assess import _compare
from drivetrain_workers.assessment.baselines import bag_of_tokens, logistic_regression, standard_baseline, trigram
from drivetrain_workers.assessment.explain import explain
from drivetrain_workers.assessment.judging import judge_all, next_token_judge, token_counts, vocabulary
from drivetrain_workers.assessment.pictures import draw_reliability
from drivetrain_workers.assessment.scores import Outcomes, calibration_error, scores, worst_slices
from drivetrain_workers.assessment.splits import Splits
from drivetrain_workers.modeling.context import TrainContext
from drivetrain_workers.spec import TrainJob
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score


def _outcomes(rows: int = 400) -> tuple[Outcomes, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    positive = random.random(rows)
    targets = (random.random(rows) < positive).astype(int)
    probabilities = np.stack([1 - positive, positive], 1)
    return Outcomes.of(probabilities, targets, np.where(targets, "ill", "well")), positive, targets


def test_scores_are_those_of_scikit_learn() -> None:
    found, positive, targets = _outcomes()
    found_scores = scores(found)
    assert found_scores["accuracy"] == pytest.approx(((positive > 0.5) == targets).mean())
    assert found_scores["log_loss"] == pytest.approx(log_loss(targets, positive))
    assert found_scores["brier"] == pytest.approx(2 * brier_score_loss(targets, positive))
    assert found_scores["auc"] == pytest.approx(roc_auc_score(targets, positive))
    assert found_scores["sensitivity"] == pytest.approx((positive[targets == 1] > 0.5).mean())
    assert found_scores["specificity"] == pytest.approx((positive[targets == 0] <= 0.5).mean())


def test_calibration_error_measures_overconfidence() -> None:
    honest, positive, targets = _outcomes(20_000)
    assert calibration_error(honest) < 0.02
    sharp = positive**4 / (positive**4 + (1 - positive) ** 4)
    boastful = Outcomes.of(np.stack([1 - sharp, sharp], 1), targets, np.zeros(len(targets)))
    assert calibration_error(boastful) > 0.1


def test_the_worst_slice_comes_first_and_tiny_ones_are_left_out() -> None:
    slices = np.array(["easy"] * 50 + ["hard"] * 50 + ["rare"] * 3)
    loss = np.concatenate([np.full(50, 0.1), np.full(50, 2.0), np.full(3, 9.0)])
    found = worst_slices(slices, loss, loss < 1)
    assert [(each.name, each.decisions, each.accuracy) for each in found] == [("hard", 50, 0.0), ("easy", 50, 1.0)]


def test_reliability_is_a_picture(tmp_path: Path) -> None:
    with Image.open(draw_reliability(_outcomes()[0], tmp_path / "reliability.png")) as picture:
        assert min(picture.size) > 300


def _digits() -> Splits:
    data = load_digits()
    images, labels = data.images[..., None].astype(np.uint8), data.target[:, None].astype(np.int64)
    return Splits(
        {"image": images[:1200], "label": labels[:1200]},
        {"image": images[1200:], "label": labels[1200:]},
        [str(digit) for digit in range(10)],
        None,
    )


def test_logistic_regression_reads_digits() -> None:
    assert standard_baseline(_digits())[0] == "logistic regression"
    assert logistic_regression(_digits())["accuracy"] > 0.9


def _texts(*, labelled: bool) -> Splits:
    """Create two kinds of sentences with different words."""
    random = np.random.default_rng(0)
    words = (["red", "green", "blue", "pink"], ["one", "two", "three", "four"])
    labels = random.integers(2, size=300)
    texts = [" ".join(random.choice(words[label], 9)) for label in labels]
    tokenizer = train_tokenizer(texts, 300)
    tokens = np.zeros((300, 12), np.uint16)
    for row, text in zip(tokens, texts, strict=True):
        ids = tokenizer.encode(text).ids[:12]
        row[: len(ids)] = ids
    columns = {"tokens": tokens, **({"label": labels[:, None]} if labelled else {})}
    train = {name: values[:200] for name, values in columns.items()}
    return Splits(train, {name: values[200:] for name, values in columns.items()}, [], tokenizer)


def test_a_bag_of_tokens_classifies_texts() -> None:
    assert bag_of_tokens(_texts(labelled=True))["accuracy"] == 1.0


def test_the_trigram_is_a_distribution_and_beats_single_tokens() -> None:
    """The probabilities of all possible next tokens sum to 1, after any prefix."""
    from drivetrain_workers.assessment.baselines import _Trigram

    splits = _texts(labelled=False)
    rows, size = np.asarray(splits.train["tokens"]).astype(np.int64), 20
    rows = rows % size
    model = _Trigram(rows, size)
    for first, second in ((3, 4), (0, 0), (rows[0, 0], rows[0, 1])):
        every = np.array([[first, second, third] for third in range(size)])
        assert model.probabilities(every)[:, 1].sum() == pytest.approx(1)
    counts = token_counts(splits.train, vocabulary(splits))
    share = counts[counts > 0] / counts.sum()
    assert trigram(splits)["loss"] < -(share * np.log(share)).sum()


def test_padding_does_not_improve_the_trigram() -> None:
    """Half-filled rows of random tokens are as hard to predict as full ones."""
    random = np.random.default_rng(0)
    full = random.integers(1, 250, (400, 33))
    half = full.copy()
    half[:, 16:] = 0
    tokenizer, segments = train_tokenizer(["some text"], 300), (half > 0).astype(np.uint16)
    halves, wholes = (
        Splits(
            {name: rows[:300] for name, rows in columns.items()},
            {n: r[300:] for n, r in columns.items()},
            [],
            tokenizer,
        )
        for columns in ({"tokens": half, "segments": segments}, {"tokens": full})
    )
    assert trigram(halves)["loss"] == pytest.approx(trigram(wholes)["loss"], rel=0.1)
    assert token_counts(halves.train, 300)[0] == 0


def test_the_baseline_of_a_table_sees_all_columns() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 600, 1))
    table = {"x": x, "y": y, "label": (y > 0).astype(np.int64)}
    splits = Splits({n: v[:400] for n, v in table.items()}, {n: v[400:] for n, v in table.items()}, [], None)
    assert logistic_regression(splits)["accuracy"] > 0.95


def test_data_without_labels_has_no_standard_baseline() -> None:
    with pytest.raises(InputError, match="baseline: got true, for data without labels"):
        standard_baseline(Splits({"x": np.zeros((2, 1))}, {"x": np.zeros((2, 1))}, [], None))


class _Corner(torch.nn.Module):
    """Uses the upper left corner only."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bright = images[:, :2, :2].float().mean((1, 2, 3))
        return torch.stack([-bright, bright], 1)


def test_attributions_are_where_the_model_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from drivetrain_workers.assessment import explain as module

    seen: list[np.ndarray[Any, Any]] = []
    monkeypatch.setattr(module, "draw_images", lambda images, found, target: seen.append(found) or target)
    splits = _digits()

    def judge(model: torch.nn.Module, batch: dict[str, Any], context: TrainContext) -> dict[str, Any]:
        return classification.outcomes(model, batch)

    bright = {"image": np.full((4, 8, 8, 1), 9, np.uint8), "label": np.zeros((4, 1), np.int64)}
    explain(_Corner(), judge, Splits(splits.train, bright, [], None), 0, tmp_path)
    assert np.abs(seen[0][:, :2, :2]).min() > 0
    assert np.abs(seen[0][:, 2:]).max() == np.abs(seen[0][:, :, 2:]).max() == 0


class _Bigram(torch.nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.tokens = torch.nn.Embedding(size, size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.tokens(tokens)
        return found


def test_language_models_are_assessed_by_token(tmp_path: Path) -> None:
    """Each token is a decision, except padding; attributions become a picture of the text."""
    splits = _texts(labelled=False)
    assert splits.tokenizer
    model = _Bigram(splits.tokenizer.get_vocab_size())
    judge = next_token_judge(token_counts(splits.train, vocabulary(splits)))
    judged = judge_all(model, judge, splits, seed=0).outcomes
    assert judged is not None
    assert len(judged.targets) == 100 * 11
    assert set(judged.slices) <= {
        "rarest quarter of the text",
        "rare quarter",
        "common quarter",
        "most common quarter",
    }
    with Image.open(explain(model, judge, splits, 0, tmp_path)) as picture:
        assert picture.size[0] > 600


def _job(best: tuple[str, str] = ("accuracy", "max"), **baseline: str) -> TrainJob:
    sections = {
        "seed": 0,
        "data": {"name": "digits", "source": "/raw"},
        "model": {"factory": "model:make"},
        "training": {"steps": 1, "global_batch_size": 1, "best": dict(zip(("metric", "mode"), best, strict=True))},
        "checkpoint": {},
        "baseline": baseline or True,
    }
    return TrainJob.model_validate_json(json.dumps(sections))


def test_the_winner_is_reported() -> None:
    found = _compare(_job(), _digits(), {"accuracy": 0.99}, Path())
    assert (found["metric"], found["winner"]) == ("accuracy", "network")
    found = _compare(_job(), _digits(), {"accuracy": 0.5}, Path())
    assert found["winner"] == "logistic regression"
    found = _compare(_job(metric="log_loss", mode="min"), _digits(), {"log_loss": 0.001}, Path())
    assert found["winner"] == "network"


def test_different_losses_are_not_compared() -> None:
    """A network's own loss may be any function; its log loss is comparable with that of the baseline."""
    found = _compare(_job(("loss", "min")), _digits(), {"loss": 0.0001, "log_loss": 3.0}, Path())
    assert (found["metric"], found["winner"]) == ("log_loss", "logistic regression")


def test_a_metric_of_only_one_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="'beauty', which the network lacks"):
        _compare(_job(metric="beauty", mode="max"), _digits(), {"accuracy": 1.0}, Path())
