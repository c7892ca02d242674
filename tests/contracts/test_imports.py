"""The modules that each process may import, and the start-up time of the command."""

from __future__ import annotations

import json
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from drivetrain.cli.help import PANELS
from drivetrain.cluster.protocols import AgentLostError, NodesGoneError
from drivetrain.errors import (
    AnswerLostError,
    ClientOnlyError,
    ClusterError,
    LauncherError,
    NotFoundError,
    RayStartError,
    RunOwnedError,
    ServerError,
    StoreUnavailableError,
    TrackingError,
)
from drivetrain_pipelines import errors as data_errors
from drivetrain_workers import errors as training_errors
from drivetrain_workers.agent.node import PeerLostError

BIN = Path(sys.executable).parent


def modules_after(code: str) -> set[str]:
    """Return the top-level modules of a fresh interpreter after running ``code``."""
    program = f"{code}\nimport sys, json\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_layers_hold() -> None:
    done = subprocess.run([str(BIN / "lint-imports")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_help_is_instant_and_light() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([str(BIN / "drivetrain"), "--help"], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert all(f"{panel}:\n" in done.stdout for panel in PANELS)
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 0.5  # CPU seconds: not a timing
    loaded = modules_after("from drivetrain.cli.app import app")
    assert not loaded & {"torch", "ray", "mlflow", "deepspeed", "pyarrow", "pydantic"}


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("drivetrain.coordinator.coordinator", {"torch", "deepspeed"}),
        ("drivetrain.coordinator.wiring", {"torch", "deepspeed", "mlflow", "alembic", "matplotlib"}),
        ("drivetrain.api.session", {"torch", "deepspeed", "mlflow", "alembic", "matplotlib"}),
        ("ray", {"rfc3987_syntax"}),  # a dependency of development tools that Ray would load for a second
        ("drivetrain_workers.agent.agent", {"torch", "deepspeed", "mlflow"}),
        ("drivetrain_pipelines.prepare.preprocessor", {"torch", "deepspeed", "mlflow"}),
        ("drivetrain_pipelines.online.actor", {"torch", "deepspeed", "mlflow"}),
        ("drivetrain_workers.agent.fork_server", {"ray", "mlflow"}),
        ("drivetrain_workers.inference.predict", {"ray", "mlflow", "deepspeed"}),
        ("drivetrain_workers.assessment.assess", {"ray", "mlflow", "deepspeed"}),
    ],
)
def test_processes_stay_in_their_lane(module: str, never: set[str]) -> None:
    assert not modules_after(f"import {module}") & never


def test_ranks_hold_no_ray_and_no_mlflow() -> None:
    """A rank is a fork of the fork server and inherits its imports."""
    loaded = modules_after("from drivetrain_workers.agent.fork_server import preload; preload()")
    assert {"torch", "deepspeed"} <= loaded
    assert not loaded & {"ray", "mlflow"}


ERRORS = [
    data_errors.InputError("training.zero_stage", "4", "0, 1, 2 or 3", "Set training.zero_stage."),
    data_errors.CorruptFileError("/data/x.arrow", "block 3 differs"),
    data_errors.PrepareError("no text"),
    data_errors.PrepareError("a.png cannot be decoded", "Set data.on_error to skip"),
    data_errors.UserCodeError("data.transform job:clean raised ValueError: no text", "job.py:3"),
    data_errors.FetchError("s3://bucket/x", 3, "cut"),
    data_errors.WrongBytesError("s3://bucket/x", 3, "other bytes"),
    data_errors.UserCodeError("model.loss", "KeyError: 'x'", "model.py:3, in loss"),
    data_errors.TransformError("it raised KeyError('x')"),
    data_errors.TransformersLostError("no actor has started yet"),
    training_errors.CheckpointError("no checkpoint"),
    training_errors.ResumeMismatchError("step-00000008.g0001", "the loss differs"),
    training_errors.BadStepError(3, "spike", "loss 9 lies 20 deviations above"),
    training_errors.RewindError(3, "loss nan"),
    NotFoundError("run", "toy-9", ["toy-1"], "/home", "Name a server."),
    RayStartError("it timed out", 2, "/tmp/ray/session/logs"),
    RunOwnedError("toy-1"),
    ClusterError("the coordinator does not answer"),
    LauncherError("ray up: no such file"),
    NodesGoneError(["node"]),
    AgentLostError(1, "it died"),
    PeerLostError("toy-1/agent-1", "it died"),
    StoreUnavailableError("connection refused"),
    ServerError(403, "no"),
    AnswerLostError(0, "no answer came"),
    ClientOnlyError("torch"),
    TrackingError(600.0, "401"),
]


def test_every_error_is_in_the_list() -> None:
    def leaves(kind: type[Exception]) -> set[type[Exception]]:
        return {kind}.union(*(leaves(child) for child in kind.__subclasses__()))

    assert {type(error) for error in ERRORS} == leaves(data_errors.DrivetrainError) - {data_errors.DrivetrainError}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_survive_pickling(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert copy.__dict__ == error.__dict__
