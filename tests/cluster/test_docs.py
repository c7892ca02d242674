"""Every command and every example that the documentation shows is run; tests/docs_pages.py lists the exceptions."""

from __future__ import annotations

import json
import random
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from _pytest.mark import ParameterSet
from PIL import Image

from tests.benchmarks.scheduling import write_trace
from tests.cluster.harness import Result, command_line, run_job
from tests.cluster.service import running_service
from tests.docs_pages import DOCS, NOT_RUN_HERE, README, TEXTS, commands, drivetrain_commands, example

SHARED = {"token", "submit", "status", "logs", "wait", "queue", "nodes", "cancel", "retry"}

# Slow commands; other tests run them: of the main job, plan, doctor, checkpoint verbs and assessment.
TESTED_ELSEWHERE = ("run", "plan", "doctor", "predict", "export", "scaling-curve")

EXAMPLES = {
    "readme": (README, "Train on your own data"),
    "images": (DOCS / "train-on-your-data.md", "Images"),
    "table": (DOCS / "train-on-your-data.md", "A table"),
}


def slow_if_tested_elsewhere(command: str) -> ParameterSet:
    slow = command.split()[1] in TESTED_ELSEWHERE
    return pytest.param(command, marks=[pytest.mark.slow] if slow else [])


def needs_server(command: str) -> bool:
    return command.split()[1] in SHARED or "--server" in command


@pytest.mark.parametrize(
    "command", [slow_if_tested_elsewhere(command) for command in drivetrain_commands() if not needs_server(command)]
)
def test_drivetrain_commands_work(command: str, toy_job: Path, undisturbed: Result, tmp_path: Path) -> None:
    """The command is as shown, with the job and run of this test (the data of the recipe would have to be fetched)."""
    ours = {
        "job.yaml": str(toy_job),
        "path/to/job.yaml": str(toy_job / "job.yaml"),
        "language-model": str(toy_job),
        "RUN": undisturbed.run_id,
        "DATASET": "toy",
    }
    ours |= {name: str(tmp_path / name) for name in ("exported", "trace.csv", "my-translation")}
    ours["path/to/a/folder"] = str(tmp_path)
    write_trace(tmp_path / "trace.csv", 30, 128, 0.5)
    words = [ours.get(word, word) for word in shlex.split(command)[1:]]
    words = ["training.steps=2" if word == "training.steps=50" else word for word in words]
    if words[0] == "run" and "--set" not in words:
        words += ["--set", "training.steps=2"]
    words = ["training.epochs=0.1" if word == "training.epochs=1.0" else word for word in words]
    if words[0] == "scaling-curve":
        words += ["--picture", str(tmp_path / "curve.png"), "--fractions", "0.5,1"]
    done = command_line(undisturbed.home, *words)
    assert done.returncode == 0, done.stderr


def test_commands_of_a_shared_cluster_work(short_job: Path, tmp_path: Path) -> None:
    """The commands are as shown, in the order of the page."""
    page = DOCS / "cluster.md"
    known = [command for command in commands([page]) if command.startswith("drivetrain ")]
    shown = [command for command in known if needs_server(command) and command not in NOT_RUN_HERE]
    assert len(shown) == 12
    assert set(shown) == {command for command in drivetrain_commands() if needs_server(command)}
    with running_service(tmp_path) as service:
        run = ""
        for line in shown:
            ours = {"path/to/job.yaml": str(short_job), "RUN": run, "training.steps=50": "training.steps=4"}
            words = [ours.get(word, word) for word in shlex.split(line)[1:]]
            words = [service.url if word.startswith("http://") else word for word in words]
            done = service.command(*words)
            assert done.returncode == 0, (line, done.stderr)
            if words[0] == "submit":
                run = run or done.stdout.strip()
        with service.client() as admin:
            assert {admin.wait(one.id, 240).reason for one in admin.list()} == {"completed"}


# Examples ---------------------------------------------------------------------------------------------------------


def write_texts(folder: Path) -> None:
    assert TEXTS in commands([README])
    subprocess.run(shlex.split(TEXTS), cwd=folder, check=True)


def write_images(folder: Path) -> None:
    draw = np.random.default_rng(0)
    for channel, kind in enumerate(("cat", "dog")):
        (folder / "images" / kind).mkdir(parents=True)
        for number in range(60):
            pixels = draw.integers(0, 100, (40, 40, 3), dtype=np.uint8)
            pixels[..., channel] += 100
            Image.fromarray(pixels).save(folder / "images" / kind / f"{number}.jpg")


def write_table(folder: Path) -> None:
    draw = random.Random(0).randint
    rows = [(draw(40, 200), draw(1, 6)) for _ in range(400)]
    lines = ["area,rooms,price", *(f"{area},{rooms},{1500 * area + 10_000 * rooms}" for area, rooms in rows)]
    (folder / "houses.csv").write_text("\n".join(lines) + "\n")


DATA = {"readme": write_texts, "images": write_images, "table": write_table}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_trains_on_data_of_the_reader(name: str, shared_home: Path, tmp_path: Path) -> None:
    """The two files are as shown; the data is of the kind that the page names."""
    files = example(*EXAMPLES[name])
    assert files.keys() == {"job.yaml", "model.py"}
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    DATA[name](tmp_path)
    result = run_job(tmp_path / "job.yaml", shared_home).finish()
    assert result.code == 0, result.errors
    assert result.facts["reason"] == "completed"
    if name == "readme":
        assert result.facts["eval_loss"] < result.facts["unigram_entropy"]
        assert result.facts["sample"].startswith("The")
    if name == "table":
        (tmp_path / "new.csv").write_text("area,rooms\n100,3\n")
        done = command_line(shared_home, "predict", result.run_id, str(tmp_path / "new.csv"), "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["estimate"] > 0
    if name == "images":
        assert result.facts["metrics"]["accuracy"] > 0.8
