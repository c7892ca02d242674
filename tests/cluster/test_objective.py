"""Metrics, predictions and random numbers of a job, through a whole run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from drivetrain.api.runs import validate
from drivetrain_pipelines.errors import InputError
from mlflow import MlflowClient
from PIL import Image

from tests.cluster.harness import command_line, run_job

FUNCTIONS = """

def noisy_loss(model, batch, context):
    noise = context.normal(*batch["image"].shape[1:])
    assert context.positions.shape == batch["label"][:, 0].shape
    return loss(model, {**batch, "image": batch["image"] + 20 * noise})

def metrics(model, batch):
    guess, label = model(batch["image"].float() / 255).argmax(-1), batch["label"][:, 0]
    hits = (guess == 1) & (label == 1)
    return {"accuracy": (guess == label).float().mean(), "recall": (hits.sum(), (label == 1).sum())}

def predict(model, batch):
    guess = model(batch["image"].float() / 255).argmax(-1)
    return {"guess": guess, "label": batch["label"][:, 0], "image": batch["image"]}
"""


def test_metrics_and_predictions(pictures: Path, shared_home: Path, tmp_path: Path) -> None:
    """The same with one worker and two, with uneven micro-batches; the best checkpoint is chosen by a metric."""
    folder, home = tmp_path / "job", shared_home
    shutil.copytree(pictures, folder)
    (folder / "model.py").write_text((folder / "model.py").read_text() + FUNCTIONS)
    settings = [
        "model.loss=model:noisy_loss",
        "model.metrics=model:metrics",
        "model.predict=model:predict",
        "training={global_batch_size: 15, steps: 30, eval_every: 5, predictions: 9, optimizer: {lr: 0.01}}",
        "training.best={metric: accuracy, mode: max}",
        "checkpoint={every: 5, keep: {last: 1, best: 1}}",
    ]
    alone, pair = (run_job(folder, home, *settings, f"resources.workers={count}").finish() for count in (1, 2))
    assert [alone.code, pair.code] == [0, 0], alone.errors + pair.errors
    assert pair.series("loss") == pytest.approx(alone.series("loss"), abs=2e-5)
    assert pair.series("eval_loss") == pytest.approx(alone.series("eval_loss"), abs=2e-5)
    accuracy = pair.series("eval_accuracy")
    assert accuracy == alone.series("eval_accuracy")
    assert pair.series("eval_recall") == alone.series("eval_recall")
    assert pair.facts["metrics"]["accuracy"] == accuracy[30] > 0.8
    listed = command_line(home, "checkpoints", pair.run_id, "--json")
    kept = [json.loads(line) for line in listed.stdout.splitlines()]
    best = max(accuracy, key=lambda step: (accuracy[step], step))
    assert {checkpoint["step"] for checkpoint in kept} == {30, best}
    assert kept[0]["metrics"]["accuracy"] == accuracy[30]

    client = MlflowClient(pair.facts["mlflow_uri"])
    logged = {file.path for file in client.list_artifacts(pair.facts["mlflow_run_id"], "predictions")}
    assert logged == {f"predictions/step-{n:08d}{end}" for n in range(5, 31, 5) for end in (".json", "-image.png")}
    predictions = home / "runs" / pair.run_id / "predictions"
    table = json.loads((predictions / "step-00000030.json").read_text())
    assert table["columns"] == ["guess", "label"]
    assert len(table["data"]) == 9
    assert np.asarray(Image.open(predictions / "step-00000030-image.png")).shape == (28, 28, 3)  # three by three


def test_a_metric_that_is_not_there(pictures: Path, shared_home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "job"
    shutil.copytree(pictures, folder)
    (folder / "model.py").write_text((folder / "model.py").read_text() + FUNCTIONS)
    best = "training.best.metric=f1"
    problem = "training.best.metric: got 'f1'; allowed: loss. Set model.metrics to use other metrics."
    with pytest.raises(InputError, match=re.escape(problem)):
        validate(str(folder), [best])
    late = run_job(folder, shared_home, best, "model.metrics=model:metrics").finish()
    assert late.code == 1
    assert "training.best.metric: got 'f1'; allowed: accuracy, loss, recall" in late.facts["detail"]
