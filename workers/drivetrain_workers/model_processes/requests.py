"""Asking for something that needs the trained model, from a process that must not import torch."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass

from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.storage.checksums import JsonObject

from drivetrain_workers.errors import CheckpointError


@dataclass(frozen=True)
class PredictRequest:
    """What to ask a trained model about.

    Attributes:
        inputs: texts, paths of files, or names of classes.
        pictures: folder for images that the model makes.
        max_tokens, temperature: of generated text; as the job's ``sample`` says where they are None.
        seed: makes the answer repeatable.
        timeout_s: seconds after which the model's process is killed; None waits for it.
    """

    run_folder: str
    dataset_folder: str
    inputs: list[str]
    pictures: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int = 40
    seed: int = 0
    timeout_s: float | None = None


@dataclass(frozen=True)
class AssessRequest:
    """A trained model to assess; ``metrics`` are those of its last evaluation, and the ``loss``."""

    run_folder: str
    dataset_folder: str
    metrics: dict[str, float]


@dataclass(frozen=True)
class ExportRequest:
    """Which weights to write where; the newest valid checkpoint's where ``step`` is None."""

    run_folder: str
    dataset_folder: str
    target: str
    step: int | None = None


@dataclass(frozen=True)
class ProfileRequest:
    """What to profile: a resolved job, its code, and a prepared dataset."""

    job: JsonObject
    code_folder: str
    dataset_folder: str


@dataclass(frozen=True)
class ModelProfile:
    """What a model needs.

    Attributes:
        parameters: their number; of them ``trained`` are trained.
        largest: numbers in the largest parameter.
        flops_per_row: floating-point operations of forward and backward pass, for each row of a micro-batch.
        kept_bytes_per_row: what the forward pass keeps for the backward pass, for each row.
        kept_bytes_fixed: and however many rows there are.
        row_bytes: that a row of the dataset has.
        matmul_flops: operations per second of one core of the machine that has profiled it.
    """

    parameters: int
    trained: int
    largest: int
    flops_per_row: float
    kept_bytes_per_row: float
    kept_bytes_fixed: float
    row_bytes: float
    matmul_flops: float


_MODULES = {
    PredictRequest: "drivetrain_workers.inference.predict",
    AssessRequest: "drivetrain_workers.assessment.assess",
    ExportRequest: "drivetrain_workers.model_processes.export",
    ProfileRequest: "drivetrain_workers.model_processes.profile",
}


def profile(request: ProfileRequest) -> ModelProfile:
    """Profile a model. Raises: see `ask`."""
    return ModelProfile(**json.loads(ask(request)))


def predict(request: PredictRequest) -> list[JsonObject]:
    """A row for every input, or every sample in it: ``input`` and what the model says. Raises: see `ask`."""
    return json.loads(ask(request))  # type: ignore[no-any-return]  # written by us


Request = PredictRequest | AssessRequest | ExportRequest | ProfileRequest


def ask(request: Request) -> str:
    """JSON: of predictions, of an assessment, of a `ModelProfile`; or the path of what was exported.

    Raises:
        CheckpointError: there is no such checkpoint, or the model failed; with the reason.
        InputError: it cannot be asked that.
    """
    command = [sys.executable, "-m", _MODULES[type(request)]]
    asked = json.dumps(asdict(request))
    timeout_s = request.timeout_s if isinstance(request, PredictRequest) else None
    try:
        done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise CheckpointError(f"the model has not answered within {timeout_s:g} s") from error
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise CheckpointError(f"the model's process was ended by {name}; SIGKILL often means that memory ran out")
    if done.returncode != 0:
        last_line = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise CheckpointError(f"the model failed: {last_line}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    if "input" in answer:
        raise InputError(*answer["input"])
    if "error" in answer:
        raise CheckpointError(answer["error"])
    return str(answer["answer"])
