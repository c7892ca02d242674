"""What a trained model is worth, what it says of new inputs, and how it improves with data: through whole runs."""

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

from tests.cluster.harness import Result, command_line, run_job

MODEL = """
import torch


class Bright(torch.nn.Module):
    def __init__(self, classes, weights):
        super().__init__()
        self.scale = float(open(weights).read())
        self.layer = torch.nn.Linear(8 * 8 * 3, classes)

    def forward(self, images):
        return self.layer(images.float().flatten(1) / self.scale)


def make(classes, weights):
    return Bright(classes, weights)


def paint(model, batch, context):
    label = batch["label"][:, :1, None, None]
    return {"image": (255 * torch.ones(len(label), 8, 8, 3) * label).byte()}
"""

JUDGED = [
    f"model.{name}=drivetrain_workers.classification:{name}" for name in ("loss", "metrics", "outcomes", "predict")
]
SETTINGS = [
    *JUDGED,
    "model.files={weights: scale.txt}",
    "baseline=true",
    "explain=true",
    "training.best={metric: accuracy, mode: max}",
]


@pytest.fixture(scope="module")
def judged_job(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judged")
    shutil.copytree(pictures, folder, dirs_exist_ok=True)
    (folder / "model.py").write_text(MODEL)
    (folder / "scale.txt").write_text("255")
    return folder


@pytest.fixture(scope="module")
def judged(judged_job: Path, shared_home: Path) -> Result:
    """Run the image job with all assessments."""
    result = run_job(judged_job, shared_home, *SETTINGS).finish()
    assert result.code == 0, result.errors
    assert "problem" not in result.facts, result.facts["problem"]
    return result


def test_the_assessment_is_in_the_facts_in_mlflow_and_in_the_folder(judged: Result) -> None:
    found = judged.facts["assessment"]
    assert found["scores"]["accuracy"] == judged.facts["metrics"]["accuracy"] > 0.8
    assert {"log_loss", "brier", "calibration_error", "auc", "sensitivity", "specificity"} <= found["scores"].keys()
    assert {each["name"] for each in found["slices"]} == {"blue", "red"}
    assert found["baseline"]["name"] == "logistic regression"
    assert found["baseline"]["winner"] in ("network", "logistic regression", "neither")
    client = MlflowClient(judged.facts["mlflow_uri"])
    run = client.get_run(judged.facts["mlflow_run_id"])
    assert run.data.metrics["assessment/auc"] == found["scores"]["auc"]
    assert run.data.metrics["baseline/accuracy"] == found["baseline"]["scores"]["accuracy"]
    assert run.data.tags["drivetrain.winner"] == found["baseline"]["winner"]
    logged = {file.path for file in client.list_artifacts(run.info.run_id, "assessment")}
    assert logged == {f"assessment/{name}" for name in ("assessment.json", "attributions.png", "reliability.png")}
    folder = judged.home / "runs" / judged.run_id
    assert json.loads((folder / "assessment" / "assessment.json").read_text()) == found
    page = Path(command_line(judged.home, "report", judged.run_id).stdout.strip()).read_text()
    assert page.count('src="data:image/png;base64,') == 4
    assert "logistic regression: accuracy" in page


def test_the_summary_says_who_won(judged: Result, tmp_path: Path) -> None:
    done = command_line(judged.home, "resume", judged.run_id)
    assert done.returncode == 0, done.stderr
    assert "assessed" in done.stdout
    assert "baseline    logistic regression: accuracy" in done.stdout


def test_predictions_of_new_pictures(judged: Result, tmp_path: Path) -> None:
    for name, colour in (("fire", (250, 20, 20)), ("sea", (20, 20, 250))):
        Image.new("RGB", (30, 20), colour).save(tmp_path / f"{name}.png")
    inputs = [str(tmp_path / "fire.png"), str(tmp_path / "sea.png")]
    done = command_line(judged.home, "predict", judged.run_id, *inputs)
    assert done.returncode == 0, done.stderr
    assert [line.split(", ")[0] for line in done.stdout.splitlines()] == [
        f"{inputs[0]}: class red",
        f"{inputs[1]}: class blue",
    ]
    missing = command_line(judged.home, "predict", judged.run_id, "nothing.png")
    assert missing.returncode == 2
    assert "INPUT: got 'nothing.png', which does not exist; allowed: an existing file" in missing.stderr


@pytest.mark.slow
def test_a_model_that_makes_pictures(judged_job: Path, shared_home: Path, tmp_path: Path) -> None:
    """For a class given by name it writes an image, and never overwrites one."""
    painting = run_job(judged_job, shared_home, *SETTINGS[:3], *SETTINGS[4:5], "model.predict=model:paint").finish()
    assert painting.code == 0, painting.errors
    for _ in range(2):
        done = command_line(shared_home, "predict", painting.run_id, "red", "--to", str(tmp_path), "--json")
        assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["red-image-0.png", "red-image-1.png"]
    row = json.loads(done.stdout)
    assert row["input"] == "red"
    assert np.asarray(Image.open(row["image"])).min() == 255


@pytest.mark.slow  # the run is as that of pictures, and unit tests judge language models
def test_language_beside_a_trigram(toy_job: Path, shared_home: Path) -> None:
    settings = ["model.loss=null", "baseline=true", "explain=true", "training.steps=10"]
    result = run_job(toy_job, shared_home, *settings).finish()
    assert result.code == 0, result.errors
    assert "problem" not in result.facts, result.facts["problem"]
    found = result.facts["assessment"]
    assert found["baseline"]["name"] == "trigram"
    assert found["baseline"]["network"] == result.facts["eval_loss"]
    assert found["scores"]["log_loss"] == pytest.approx(result.facts["eval_loss"], abs=1e-4)
    assert len(found["pictures"]) == 2


@pytest.mark.slow
def test_a_scaling_curve(toy_job: Path, shared_home: Path, tmp_path: Path) -> None:
    """Each share of the data is a separate run, and is not trained again."""
    arguments = ["scaling-curve", str(toy_job), "--fractions", "0.5,1", "--picture", str(tmp_path / "curve.png")]
    settings = ["--set=model.loss=null", "--set=training.steps=null", "--set=training.epochs=0.1"]
    first, again = (command_line(shared_home, *arguments, *settings, "--json") for _ in range(2))
    assert first.returncode == again.returncode == 0, first.stderr + again.stderr
    found = json.loads(first.stdout.splitlines()[-1])
    half, whole = found["points"]
    assert half["samples"] == pytest.approx(whole["samples"] / 2, rel=0.1)
    assert json.loads(again.stdout.splitlines()[-1])["points"] == found["points"]
    assert (tmp_path / "curve.png").stat().st_size > 5000
    wrong = command_line(shared_home, "scaling-curve", str(toy_job), "--fractions", "0.5,2")
    assert wrong.returncode == 2
    assert "--fractions: got 0.5,2.0; allowed: two or more shares in (0, 1]" in wrong.stderr


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("explain=true", "explain: got true, without model.outcomes"),
        ("model.outcomes=model:outcome", "model.outcomes: got 'model:outcome'"),
        ("model.files={w: missing.bin}", "model.files.w: got"),
        ("baseline={function: nowhere:f}", "baseline.function: got 'nowhere:f'"),
        ("baseline={metrik: auc}", "baseline.metrik: got an unknown key"),
        ("baseline=perhaps", "baseline: got 'perhaps'"),
        ("sample={template: hello}", "sample.template: got 'hello'"),
        ("sample={prompt: hello}", "sample: got set, for data of kind image"),
        ("baseline={metric: auc}", "give both metric and mode, or neither"),
    ],
)
def test_mistakes_are_told_before_anything_starts(pictures: Path, setting: str, problem: str) -> None:
    with pytest.raises(InputError, match=re.escape(problem)):
        validate(str(pictures), [setting])
