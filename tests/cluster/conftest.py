"""A toy job, and one undisturbed run of it that the disturbed ones are compared with."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.harness import Result, run_job, started

# Fixed sentences: what comes next can be learned in forty steps, and no single token's frequency tells it.
SENTENCES = (
    "the cat sat on a mat and then it ran away",
    "far over the hill was an old red house",
    "a dog ran into the blue house by the tree",
    "then the hill and the tree were far away",
)

# The pause makes steps long enough to be hit, although they are told once a second; it is user code too.
LOSS = """
import time

from drivetrain_workers.model import next_token_loss


def slow_loss(model, batch):
    time.sleep(0.12)
    return next_token_loss(model, batch)
"""


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for all runs of the session: its dataset is prepared once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def toy_job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny language model job: 2 ranks, 40 steps, dropout, checkpoints every 8 steps."""
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
            "chunk_bytes": 50_000,
        },
        "model": {
            "factory": "drivetrain_workers.recipes.language_model.model:gpt",
            "args": {"layers": 2, "width": 32, "heads": 2, "dropout": 0.1},
            "loss": "toy_loss:slow_loss",
        },
        "training": {"steps": 40, "global_batch_size": 8, "zero": 2, "eval_every": 10, "optimizer": {"lr": 1e-2}},
        "checkpoint": {"every": 8},
        "sample": {"prompt": "the cat", "max_tokens": 8},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    return folder


@pytest.fixture(scope="session")
def undisturbed(toy_job: Path, shared_home: Path) -> Result:
    """The toy job, left alone."""
    return run_job(toy_job, shared_home).finish()


@pytest.fixture(autouse=True)
def _nothing_left_running() -> Iterator[None]:
    yield
    while started:
        started.pop().close()
