"""A mutated job file is loaded as it is written, or refused with a sentence."""

from __future__ import annotations

import random
import shutil
import warnings
from pathlib import Path

import pytest
import yaml
from drivetrain.job.loading import load_job, recipes_folder
from drivetrain_pipelines.errors import InputError

from tests.fuzz.job_files import differences, mutated, repeated_keys

SMALL = """\
name: small
seed: 3
data:
  name: toy
  source: text.txt
  sequence_length: 32
  tokenizer: {vocab_size: 300}
  eval_fraction: 0.1
model:
  factory: model:make
  args: {width: 8}
training:
  steps: 10
  global_batch_size: 8
  zero_stage: 2
  optimizer: {type: AdamW, lr: 1e-3, betas: [0.9, 0.99]}
  lr_schedule: {type: constant}
checkpoint: {every: 5}
resources: {workers: 2, preprocessors: 1}
sample: {prompt: "The ", max_tokens: 5}
"""


@pytest.fixture
def jobs(tmp_path: Path) -> list[Path]:
    """Copy all recipes, and write a small job."""
    small = tmp_path / "small"
    small.mkdir()
    (small / "text.txt").write_text("some text\n")
    (small / "model.py").write_text("def make(vocab_size, width=8): ...\n")
    (small / "job.yaml").write_text(SMALL)
    for recipe in recipes_folder().glob("*/job.yaml"):
        shutil.copytree(recipe.parent, tmp_path / recipe.parent.name)
    return sorted(tmp_path.glob("*/job.yaml"))


@pytest.mark.parametrize("count", [400, pytest.param(5000, marks=pytest.mark.slow)])
def test_mutated_job_files(jobs: list[Path], count: int) -> None:
    originals = {file: file.read_text() for file in jobs}
    loaded = 0
    for seed in range(count):
        choose = random.Random(seed)
        file = choose.choice(jobs)
        content = mutated(originals[file], choose)
        file.write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # a renamed key
                job = load_job(str(file))
        except InputError as error:
            _check_sentence(error, content)
            continue
        loaded += 1
        text = content.decode("utf-8-sig")
        assert not repeated_keys(yaml.compose(text)), text
        written = yaml.load(text, yaml.BaseLoader)  # only text, lists and mappings
        assert list(differences(written, job.spec.model_dump(mode="json"), file.parent)) == [], text
    assert loaded > count / 20


def _check_sentence(error: InputError, content: bytes) -> None:
    text = str(error)
    assert error.where, content
    assert error.allowed, content
    assert len(text) < 1500, text
    assert "\n" not in text, text
    assert "Traceback" not in text, text
    assert "pydantic" not in text, text
