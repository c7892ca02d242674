"""The process that tries a job."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.online.transform import OnlineTransform
from drivetrain_pipelines.prepare.first_samples import first_samples, tokenizer_in
from drivetrain_pipelines.raw.sources import fetch
from drivetrain_pipelines.stream.columns import Columns
from drivetrain_pipelines.stream.dataset import Dataset, open_dataset
from tokenizers import Tokenizer

from drivetrain_workers.engine.training_data import model_facts
from drivetrain_workers.inference.generation import Sampling, generate
from drivetrain_workers.model_processes.requests import Trial, TryRequest
from drivetrain_workers.model_processes.trained import print_answer
from drivetrain_workers.modeling.model import build_model, checkpoint_activations
from drivetrain_workers.modeling.model_input import to_tensor
from drivetrain_workers.modeling.objective import Batch, load_objective
from drivetrain_workers.spec import TrainJob
from drivetrain_workers.trial.job_errors import errors_of
from drivetrain_workers.trial.step import ErrorsOf, trained_parameters, try_step

_RECORDS = {"tokens": 1000, "columns": 1000, "image": 64, "audio": 64}  # of each source; decoding takes time
_MAX_ROWS = 8
_SAMPLE_TOKENS = 4


def try_job(request: TryRequest) -> str:
    """Read the first records, build the model, make a step and an evaluation. Returns JSON of a `Trial`.

    Raises:
        InputError: something failed; with the key of the job that is to be changed.
    """
    began, code = time.monotonic(), Path(request.code_folder)
    job = TrainJob.model_validate_json(json.dumps(request.job))
    errors = partial(errors_of, code=code, left_out=request.left_out)
    device = _device(request.gpus)
    with tempfile.TemporaryDirectory(prefix="drivetrain-try-") as target:
        sources = ", ".join(part.source for part in job.data.mixture)
        with errors("data.source", f"data of {sources}", "records that this machine can read and convert to samples"):
            job = _with_local_files(job, Path(request.downloads))
            found = first_samples(job.data, code, Path(request.downloads), target, _RECORDS[job.data.kind])
            dataset = open_dataset(target, job.data)
            tokenizer = tokenizer_in(target) if job.data.kind == "tokens" else None
        with errors("data.online.transform", "a function", "a function(sample, random) that returns a sample"):
            train, evaluation = (_batch(dataset, job, split, code, device) for split in ("train", "eval"))
    with errors("model.factory", "a function", "a function that returns a torch.nn.Module"):
        model = build_model(job.model, request.code_folder, model_facts(dataset, job.data), job.seed)
        parameters = trained_parameters(model)
        model.to(device, torch.bfloat16 if job.training.precision == "bf16" else None)
    if job.training.activation_checkpointing:
        checkpoint_activations(model)
    objective = load_objective(job.model, request.code_folder)
    names = ", ".join(f"{name} {_shape(values)}" for name, values in train.items())
    takes: ErrorsOf = partial(errors, allowed=f"a function that works for the samples ({names})")
    tried = try_step(model, objective, job, train, evaluation, takes, tuple(found.classes))
    _generate(model, tokenizer, job, takes)
    trial = Trial(
        records=int(found.statistics["records"]),
        skipped=tuple(found.skipped),
        samples=found.rows("train"),
        rows=len(next(iter(train.values()))),
        parameters=parameters,
        loss=tried.loss,
        eval_loss=tried.eval_loss,
        metrics=tried.metrics,
        device=device.type,
        seconds=time.monotonic() - began,
    )
    return json.dumps(asdict(trial))


def _device(gpus: int | str) -> torch.device:
    """Return the GPU if the job asks for one, or takes one that is there. Raises InputError if it is not there."""
    there = torch.cuda.is_available()
    if gpus == 1 and not there:
        fix = "Try the job on a machine with a GPU, or with --set resources.gpus_per_worker=0."
        raise InputError("resources.gpus_per_worker", "1, on a machine without a GPU", "auto, or 0", fix)
    return torch.device("cuda" if there and gpus else "cpu")


def _with_local_files(job: TrainJob, downloads: Path) -> TrainJob:
    """Return the job with the files that it names on this machine."""
    data, model, tokenizer = job.data, job.model, job.data.tokenizer

    def local(source: str, key: str) -> str:
        return str(fetch(source, key, data.storage, downloads))

    if tokenizer.file:
        tokenizer = tokenizer.model_copy(update={"file": local(tokenizer.file, "data.tokenizer.file")})
    of_data = {name: local(source, f"data.files.{name}") for name, source in data.files.items()}
    of_model = {name: local(source, f"model.files.{name}") for name, source in model.files.items()}
    data = data.model_copy(update={"tokenizer": tokenizer, "files": of_data})
    return job.model_copy(update={"data": data, "model": model.model_copy(update={"files": of_model})})


def _batch(dataset: Dataset, job: TrainJob, split: str, code: Path, device: torch.device) -> Batch:
    count = min(dataset.manifest.rows(split), job.training.global_batch_size, _MAX_ROWS)
    numbers = np.arange(count, dtype=np.int64)
    columns: Columns = dataset.read(split, numbers)
    if online := OnlineTransform.of(job.data, code, job.seed):
        columns = {**online.apply(columns, numbers if split == "train" else None)}
    return {name: to_tensor(values, device) for name, values in columns.items()}


def _generate(model: torch.nn.Module, tokenizer: Tokenizer | None, job: TrainJob, takes: ErrorsOf) -> None:
    """Generate a few tokens where the run generates a sample at its end."""
    if not job.sample or tokenizer is None:
        return
    with takes("sample", "a model"):
        prompt = job.sample.template.replace("{input}", job.sample.prompt)
        length = job.data.sequence_length - (job.data.packing == "pad")
        sampling = Sampling(_SAMPLE_TOKENS, job.sample.temperature, 40, job.seed)
        generate(model.cpu(), tokenizer, prompt, length, sampling)


def _shape(values: object) -> str:
    return f"{[*values.shape]}" if torch.is_tensor(values) else "a list"


if __name__ == "__main__":
    print_answer(TryRequest, try_job)
