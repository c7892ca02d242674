"""Requests that need the trained model, from a process that must not import torch."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass

from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.storage.json_files import JsonObject

from drivetrain_workers.errors import CheckpointError


@dataclass(frozen=True)
class PredictRequest:
    """A request for predictions of a trained model.

    Attributes:
        inputs: texts, paths of files, or names of classes.
        pictures: folder for images that the model generates.
        max_tokens, temperature: of generated text; None: as in the job's ``sample``.
        seed: makes the result reproducible.
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
    """A request to assess a trained model; ``metrics`` are those of its last evaluation, and the ``loss``."""

    run_folder: str
    dataset_folder: str
    metrics: dict[str, float]


@dataclass(frozen=True)
class ExportRequest:
    """A request to export weights to a folder; ``step`` None: of the newest valid checkpoint."""

    run_folder: str
    dataset_folder: str
    target: str
    step: int | None = None


@dataclass(frozen=True)
class ProfileRequest:
    """A request to profile a resolved job with its code and a prepared dataset."""

    job: JsonObject
    code_folder: str
    dataset_folder: str


@dataclass(frozen=True)
class ModelProfile:
    """Requirements of a model.

    Attributes:
        parameters: number of parameters, of which ``trained`` are trained.
        tensors: number of parameter tensors.
        largest: numbers in the largest parameter.
        flops_per_row: floating-point operations of forward and backward pass, for each row of a micro-batch.
        forward_flops_per_row: those of the forward pass.
        recomputed_flops_per_row: those that activation checkpointing repeats, also where the job does not use it.
        kept_bytes_per_row: bytes that the forward pass keeps for the backward pass, per row.
        kept_bytes_fixed: the same, independent of the number of rows.
        row_bytes: size of a row of the dataset.
        matmul_flops: operations per second of one core of the machine that ran the profile.
    """

    parameters: int
    trained: int
    tensors: int
    largest: int
    flops_per_row: float
    forward_flops_per_row: float
    recomputed_flops_per_row: float
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
    """Profile a model. Raises as `run_request`."""
    return ModelProfile(**json.loads(run_request(request)))


def predict(request: PredictRequest) -> list[JsonObject]:
    """Return a row for every input, or every sample in it: ``input`` and the predictions. Raises as `run_request`."""
    return json.loads(run_request(request))  # type: ignore[no-any-return]  # we wrote it


Request = PredictRequest | AssessRequest | ExportRequest | ProfileRequest


def run_request(request: Request) -> str:
    """Run a request in a new process. Returns JSON of the result, or the path of an export.

    Raises:
        CheckpointError: there is no such checkpoint, or the model failed; with the reason.
        InputError: the request does not fit the model.
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
        raise CheckpointError(f"the process of the model was ended by {name}; SIGKILL often means out of memory")
    if done.returncode != 0:
        last_line = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise CheckpointError(f"the model failed: {last_line}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    if "input" in answer:
        raise InputError(*answer["input"])
    if "error" in answer:
        raise CheckpointError(answer["error"])
    return str(answer["answer"])
