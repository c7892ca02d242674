"""The base distribution: a client without torch, DeepSpeed, Ray or MLflow, against a real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.service import Service, running_service

REPOSITORY = Path(__file__).parents[2]
MAX_MEGABYTES = 50

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("server-home")) as running:
        yield running


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a new virtual environment with only `pip install drivetrain`."""
    folder = tmp_path_factory.mktemp("thin") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    constraints = ["--constraint", str(REPOSITORY / "constraints.txt")]
    pip = [sys.executable, "-m", "pip", "--python", str(folder), "install", "--quiet"]
    subprocess.run([*pip, *constraints, str(REPOSITORY)], check=True)
    return folder


@pytest.fixture
def drivetrain(environment: Path, service: Service, tmp_path: Path) -> Command:
    """Return the command of that environment, configured for the server and a separate home."""
    token = (service.home / "token").read_text()
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables |= {"DRIVETRAIN_SERVER": service.url, "DRIVETRAIN_TOKEN": token, "DRIVETRAIN_HOME": str(tmp_path)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(environment / "bin" / "drivetrain"), *arguments]
        return subprocess.run(
            command, env=variables, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240
        )

    return run


def test_it_is_small_and_light(environment: Path) -> None:
    size = sum(path.lstat().st_size for path in environment.rglob("*") if path.is_file() and not path.is_symlink())
    assert size / 1e6 < MAX_MEGABYTES
    python = [str(environment / "bin" / "python"), "-c"]
    heavy = {"torch", "ray", "mlflow", "deepspeed", "numpy", "pyarrow"}
    found = f"import importlib.util; print([name for name in {heavy} if importlib.util.find_spec(name)])"
    assert subprocess.run([*python, found], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_it_submits_and_follows(drivetrain: Command, short_job: Path) -> None:
    checked = drivetrain("validate", str(short_job))
    assert (checked.returncode, checked.stderr) == (0, "")
    submitted = drivetrain("submit", str(short_job), "--json")
    assert submitted.returncode == 0, submitted.stderr
    run = json.loads(submitted.stdout)["run_id"]
    waited = drivetrain("wait", run)
    assert waited.returncode == 0, waited.stdout + waited.stderr
    assert json.loads(drivetrain("status", run, "--json").stdout)["reason"] == "completed"
    assert drivetrain("logs", run).returncode == 0
    assert run in drivetrain("list").stdout


def test_what_needs_more_says_so(drivetrain: Command, short_job: Path) -> None:
    done = drivetrain("run", str(short_job))
    assert done.returncode == 2
    assert "pip install 'drivetrain[train]'" in done.stderr
    assert "Traceback" not in done.stderr
