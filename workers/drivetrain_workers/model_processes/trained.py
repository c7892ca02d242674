"""The model of a run with the weights of one of its checkpoints, without DeepSpeed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from drivetrain_pipelines.errors import DrivetrainError, InputError
from drivetrain_pipelines.storage.json_files import JsonObject
from drivetrain_pipelines.stream.dataset import Dataset, open_dataset

from drivetrain_workers.checkpoints.load import Checkpoint, check_shapes
from drivetrain_workers.checkpoints.store import newest_valid
from drivetrain_workers.engine.training_data import model_facts
from drivetrain_workers.errors import CheckpointError
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


def print_answer(make: Callable[[], str]) -> None:
    """Print the result of ``make`` as one line of JSON, or its error; see `requests.run_request`."""
    answer: JsonObject
    try:
        answer = {"answer": make()}
    except InputError as error:
        answer = {"input": error.args}
    except DrivetrainError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
