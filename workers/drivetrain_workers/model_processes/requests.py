"""Requests that need the trained model, from a process that must not import torch."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass

from drivetrain_pipelines.errors import InputError, UserCodeError
from drivetrain_pipelines.storage.json_files import JsonObject

from drivetrain_workers.errors import CheckpointError

TIMEOUT_S = 3600.0  # for a whole eval split on a few cores; the job's code may also never return


@dataclass(frozen=True)
class PredictRequest:
    """A request for predictions of a trained model.

    Attributes:
        inputs: texts, paths of files, or names of classes.
        pictures: folder for images that the model generates.
        max_tokens, temperature: of generated text; None: as in the job's ``sample``.
        seed: makes the result reproducible.
        timeout_s: seconds after which the model's process is killed; so in all requests.
    """

    run_folder: str
    dataset_folder: str
    inputs: list[str]
    pictures: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int = 40
    seed: int = 0
    timeout_s: float = TIMEOUT_S


@dataclass(frozen=True)
class AssessRequest:
    """A request to assess a trained model; ``metrics`` are those of its last evaluation, and the ``loss``."""

    run_folder: str
    dataset_folder: str
    metrics: dict[str, float]
    timeout_s: float = TIMEOUT_S


@dataclass(frozen=True)
class ExportRequest:
    """A request to export weights to a folder; ``step`` None: of the newest valid checkpoint."""

    run_folder: str
    dataset_folder: str
    target: str
    step: int | None = None
    timeout_s: float = TIMEOUT_S


@dataclass(frozen=True)
class ProfileRequest:
    """A request to profile a resolved job with its code and a prepared dataset."""

    job: JsonObject
    code_folder: str
    dataset_folder: str
    timeout_s: float = TIMEOUT_S


@dataclass(frozen=True)
class TryRequest:
    """A request to try a resolved job with its code.

    Attributes:
        downloads: folder for remote files of the job.
        gpus: ``resources.gpus_per_worker``.
        left_out: files and folders that are not part of the code, each with the reason.
        timeout_s: seconds after which the process is killed.
    """

    job: JsonObject
    code_folder: str
    downloads: str
    gpus: int | str
    left_out: dict[str, str]
    timeout_s: float = TIMEOUT_S


@dataclass(frozen=True)
class Trial:
    """What was tried of a job, and the results.

    Attributes:
        records: number of records read.
        skipped: bad records among them, each with its error.
        samples: number of samples made of them.
        rows: samples of the step and of the evaluation, each.
        parameters: number of trained parameters.
        loss: of the step.
        eval_loss: of the evaluation after it, with its ``metrics``.
        device: ``cpu`` or ``cuda``.
        seconds: duration without the start of the process.
    """

    records: int
    skipped: tuple[str, ...]
    samples: int
    rows: int
    parameters: int
    loss: float
    eval_loss: float
    metrics: dict[str, float]
    device: str
    seconds: float


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
    TryRequest: "drivetrain_workers.trial.main",
}


def profile(request: ProfileRequest) -> ModelProfile:
    """Profile a model. Raises as `run_request`."""
    return ModelProfile(**json.loads(run_request(request)))


def predict(request: PredictRequest) -> list[JsonObject]:
    """Return a row for every input, or every sample in it: ``input`` and the predictions. Raises as `run_request`."""
    return json.loads(run_request(request))  # type: ignore[no-any-return]  # we wrote it


def try_job(request: TryRequest) -> Trial:
    """Try a job. Raises as `run_request`."""
    found = json.loads(run_request(request))
    return Trial(**{**found, "skipped": tuple(found["skipped"])})


Request = PredictRequest | AssessRequest | ExportRequest | ProfileRequest | TryRequest


def run_request(request: Request) -> str:
    """Run a request in a new process. Returns JSON of the result, or the path of an export.

    Raises:
        CheckpointError: there is no such checkpoint, or the model failed; with the reason.
        InputError: the request does not fit the model.
        UserCodeError: the job's code raised an exception.
    """
    command = [sys.executable, "-m", _MODULES[type(request)]]
    asked = json.dumps(asdict(request))
    try:
        done = subprocess.run(
            command,
            input=asked,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=request.timeout_s,
        )
    except subprocess.TimeoutExpired as error:
        raise CheckpointError(f"the model has not answered within {request.timeout_s:g} s") from error
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise CheckpointError(f"the process of the model was ended by {name}; SIGKILL often means out of memory")
    answer = _answer(done.stdout)
    if not answer:  # success is an answer, not an exit code
        last_line = (done.stderr.strip().splitlines() or ["no output"])[-1]
        ended = f"its process ended with exit code {done.returncode} and without an answer"
        raise CheckpointError(f"the model failed: {ended}; the last line of its output: {last_line[:500]}")
    if "user" in answer:
        raise UserCodeError(*answer["user"])
    if "input" in answer:
        raise InputError(*answer["input"])
    if "error" in answer:
        raise CheckpointError(answer["error"])
    return str(answer["answer"])


def _answer(output: str) -> JsonObject:
    """Return the answer in the output of a process, see `trained.print_answer`; empty if there is none."""
    lines = output.strip().split("\n")
    try:
        found = json.loads(lines[-1])
    except ValueError:
        return {}
    return found if isinstance(found, dict) and len(found) == 1 else {}
