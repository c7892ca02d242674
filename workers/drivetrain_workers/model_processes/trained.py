"""The model of a run with the weights of one of its checkpoints, without DeepSpeed."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from drivetrain_pipelines.errors import DrivetrainError, InputError
from drivetrain_pipelines.storage.json_files import JsonObject
from drivetrain_pipelines.stream.dataset import Dataset, open_dataset
from drivetrain_pipelines.user_code import describe, user_code_error

from drivetrain_workers.checkpoints.load import Checkpoint, check_shapes
from drivetrain_workers.checkpoints.store import newest_valid
from drivetrain_workers.engine.training_data import model_facts
from drivetrain_workers.errors import CheckpointError
from drivetrain_workers.model_processes.requests import ProfileRequest, TryRequest
from drivetrain_workers.modeling.model import build_model, persistent_buffers, temporary_buffers
from drivetrain_workers.records.run_folder import RunFolder
from drivetrain_workers.spec import TrainJob


@dataclass(frozen=True)
class Trained:
    """A model ready for use, and its origin."""

    model: torch.nn.Module
    checkpoint: Checkpoint
    dataset: Dataset
    job: TrainJob


def load_trained(run_folder: str, dataset_folder: str, step: int | None = None) -> Trained:
    """Build the job's model and load the checkpoint of ``step``, or the newest valid one.

    Raises:
        CheckpointError: there is no such checkpoint, or no valid one.
    """
    folder = RunFolder(Path(run_folder))
    found, problems = newest_valid(folder.checkpoints, step)
    if found is None:
        which = "no checkpoint yet" if step is None else f"no checkpoint of step {step}"
        raise CheckpointError(f"the run has {which}" + "".join(f"; {problem}" for problem in problems))
    job = folder.train_job()
    dataset = open_dataset(dataset_folder, job.data)
    model = build_model(job.model, str(folder.code), model_facts(dataset, job.data), job.seed).eval()
    checkpoint = Checkpoint(found)
    temporary, own = temporary_buffers(model), {**dict(model.named_parameters()), **persistent_buffers(model)}
    saved = {name: tensor for name, tensor in checkpoint.weights().items() if name not in temporary}
    check_shapes(found.name, *({name: list(t.shape) for name, t in tensors.items()} for tensors in (saved, own)))
    for name, tensor in own.items():
        tensor.data.copy_(saved[name])
    return Trained(model, checkpoint, dataset, job)


def print_answer(kind: type[Any], make: Callable[[Any], str]) -> None:
    """Print the result of ``make`` for the request on stdin as one line of JSON, or its error.

    What the job's code prints goes to stderr. See `requests.run_request`.
    """
    request, answer = kind(**json.load(sys.stdin)), JsonObject()
    code = (
        request.code_folder if kind in (ProfileRequest, TryRequest) else str(RunFolder(Path(request.run_folder)).code)
    )
    with _output_to_stderr():
        try:
            answer = {"answer": make(request)}
        except BaseException as error:  # SystemExit of the job's code, too
            traceback.print_exc()
            answer = _problem(error, code)
    print(json.dumps(answer), flush=True)


@contextmanager
def _output_to_stderr() -> Iterator[None]:
    """Send what the job's code and the libraries that it calls print to stderr."""
    answers = os.dup(1)
    sys.stdout.flush()
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stdout.flush()
        os.dup2(answers, 1)
        os.close(answers)


def _problem(error: BaseException, code: str) -> JsonObject:
    if found := user_code_error(error, code):
        return {"user": found.args}
    if isinstance(error, InputError):
        return {"input": error.args}
    return {"error": str(error) if isinstance(error, DrivetrainError) else f"the model failed: {describe(error)}"}
