"""A toy job, and an undisturbed run of it as the reference for disturbed runs."""

from __future__ import annotations

import io
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.cluster.harness import Result, forget_unended, run_job, started
from tests.cluster.warm_ray import warm_ray

# Fixed sentences: the next token can be learned in forty steps, but not from token frequencies alone.
SENTENCES = (
    "the cat sat on a mat and then it ran away",
    "far over the hill was an old red house",
    "a dog ran into the blue house by the tree",
    "then the hill and the tree were far away",
)

# The pause makes steps long enough to be killed, although steps are reported once a second; it is also user code.
LOSS = """
import time

from drivetrain_workers.modeling.objective import next_token_loss


def slow_loss(model, batch):
    time.sleep(0.12)
    return next_token_loss(model, batch)


def slower_loss(model, batch):
    time.sleep(0.5)
    return next_token_loss(model, batch)
"""


PICTURE_MODEL = """
import torch
import torch.nn.functional as F


def make(classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8 * 8 * 3, classes))


def loss(model, batch):
    return F.cross_entropy(model(batch["image"].float() / 255), batch["label"][:, 0])
"""


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one home for all runs of the session, whose dataset is prepared once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def toy_job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny language model job: 2 ranks, 40 steps, dropout, checkpoints every 8 steps."""
    folder = tmp_path_factory.mktemp("toy")
    choose = random.Random(0).choice
    lines = [choose(SENTENCES) for _ in range(3000)]
    (folder / "text.txt").write_text("\n".join(lines))
    (folder / "toy_loss.py").write_text(LOSS)
    job = {
        "name": "toy",
        "seed": 7,
        "data": {
            "name": "toy",
            "source": "text.txt",
            "tokenizer": {"vocab_size": 300},
            "sequence_length": 32,
            "shard_bytes": 20_000,
        },
        "model": {
            "factory": "drivetrain_workers.recipes.language_model.model:gpt",
            "args": {"layers": 2, "width": 32, "heads": 2, "dropout": 0.1},
            "loss": "toy_loss:slow_loss",
        },
        "training": {"steps": 40, "global_batch_size": 8, "zero_stage": 2, "eval_every": 10, "optimizer": {"lr": 1e-2}},
        "checkpoint": {"every": 8},
        "sample": {"prompt": "the cat", "max_tokens": 8},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    return folder


@pytest.fixture(scope="session")
def short_job(toy_job: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the toy job with a few steps, and code that prints."""
    folder = tmp_path_factory.mktemp("jobs") / "short"
    shutil.copytree(toy_job, folder)
    job = yaml.safe_load((folder / "job.yaml").read_text())
    job["name"] = "short"
    job["training"] |= {"steps": 4, "eval_every": 4}
    job["checkpoint"]["every"] = 4
    del job["sample"]
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    code = folder / "toy_loss.py"
    code.write_text(code.read_text().replace("    time.sleep(0.12)\n", '    print("a loss is computed")\n'))
    return folder


@pytest.fixture(scope="session")
def undisturbed(toy_job: Path, shared_home: Path) -> Result:
    """Run the toy job without disturbance."""
    return run_job(toy_job, shared_home).finish()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a job folder with 200 small images, reddish and bluish, one of them broken."""
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for number in range(200):
        name = ("blue", "red")[number % 2]
        pixels = draw.integers(0, 100, (8, 8, 3), dtype=np.uint8)
        pixels[..., 0 if name == "red" else 2] += 100
        sink = io.BytesIO()
        Image.fromarray(pixels).save(sink, "PNG")
        path = folder / "raw" / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sink.getvalue() if number != 77 else b"not a picture")
    (folder / "model.py").write_text(PICTURE_MODEL)
    job = {
        "name": "pictures",
        "data": {
            "name": "pictures",
            "source": "raw",
            "eval_fraction": 0.2,
            "image": {"height": 8, "width": 8},
            "on_error": "skip",
            "chunk_bytes": 4096,
            "shard_bytes": 4096,
        },
        "model": {"factory": "model:make", "loss": "model:loss"},
        "training": {"steps": 30, "global_batch_size": 16, "eval_every": 30, "optimizer": {"lr": 1e-2}},
        "checkpoint": {"every": 10},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    return folder


@pytest.fixture(scope="session", autouse=True)
def _warm_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    warm_ray.cache = tmp_path_factory.mktemp("cache")
    warm_ray.offered = True
    yield
    warm_ray.offered = False
    warm_ray.stop()


@pytest.fixture(autouse=True)
def _nothing_left_running() -> Iterator[None]:
    yield
    while started:
        started.pop().close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Discard the warm Ray and the unfinished runs of a failed test."""
    report = yield
    if report.failed:
        warm_ray.stop()
        for job in started:
            job.close()
            forget_unended(job.home)
    return report
