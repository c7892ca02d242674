"""Predictions of a trained model for new inputs: `drivetrain predict`, and the sample at the end of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.online.transform import OnlineTransform
from drivetrain_pipelines.prepare.inputs import samples_of, texts_of
from drivetrain_pipelines.prepare.tokenizer import TOKENIZER_FILE, load_tokenizer
from drivetrain_pipelines.spec import DataSpec
from drivetrain_pipelines.storage.json_files import JsonObject
from drivetrain_pipelines.stream.columns import Columns

from drivetrain_workers.inference.generation import Sampling, generate
from drivetrain_workers.model_processes.requests import PredictRequest
from drivetrain_workers.model_processes.trained import Trained, load_trained, print_answer
from drivetrain_workers.modeling.context import TrainContext
from drivetrain_workers.modeling.model_input import to_tensor
from drivetrain_workers.modeling.objective import Batch, load_objective
from drivetrain_workers.records.predictions import is_image, save_images
from drivetrain_workers.records.run_folder import RunFolder
from drivetrain_workers.spec import SampleSpec

_INPUT = "{input}"


def predict(request: PredictRequest) -> str:
    """Return a JSON list with a row for each input, or for each sample in it: ``input``, and the model's predictions.

    Raises:
        CheckpointError: the run has no valid checkpoint.
        InputError: the model does not take these inputs, or the job has no ``model.predict``.
    """
    names = {_absolute(given): given for given in request.inputs}
    shown = Path(request.pictures)
    request = replace(request, inputs=[*map(_absolute, request.inputs)], pictures=str(shown.absolute()))
    trained = load_trained(request.run_folder, request.dataset_folder)
    data = trained.job.data
    if data.kind == "tokens" and "label" not in trained.dataset.manifest.schema.names:
        rows = [
            _continue(trained, data, given, text, request) for given in request.inputs for text in texts_of(given, data)
        ]
    else:
        rows = list(_decisions(trained, data, request, shown))
    rows = [{**row, "input": names[row["input"]]} for row in rows]
    return json.dumps(rows, default=str, ensure_ascii=False)


def _absolute(given: str) -> str:
    """Return the absolute path of a file: the model's code has its own working directory. A text stays as it is."""
    try:
        return str(Path(given).absolute()) if Path(given).is_file() else given
    except (OSError, ValueError):  # a long text is not a valid file name
        return given


def _continue(trained: Trained, data: DataSpec, given: str, text: str, request: PredictRequest) -> dict[str, str]:
    tokenizer = load_tokenizer(trained.dataset.folder.read(TOKENIZER_FILE), TOKENIZER_FILE)
    asked = trained.job.sample or SampleSpec()
    template = asked.template
    sampling = Sampling(
        asked.max_tokens if request.max_tokens is None else request.max_tokens,
        asked.temperature if request.temperature is None else request.temperature,
        request.top_k,
        request.seed,
        tuple(asked.stop),
    )
    prompt = template.replace(_INPUT, text)
    length = data.sequence_length - (data.packing == "pad")  # tokens that the model has seen at a time
    outputs = generate(trained.model, tokenizer, prompt, length, sampling, data.tokenizer)
    return {"input": given, "text": "".join(outputs) if template == _INPUT else outputs[1].strip()}


@torch.no_grad()
def _decisions(trained: Trained, data: DataSpec, request: PredictRequest, shown: Path) -> Iterator[JsonObject]:
    code = RunFolder(Path(request.run_folder)).code
    objective = load_objective(trained.job.model, str(code))
    if not objective.has_predictions:
        raise InputError("RUN", request.run_folder, "a run whose job has model.predict")
    online = OnlineTransform.of(data, code, request.seed)
    classes = tuple(trained.dataset.manifest.classes)
    for given in request.inputs:
        columns = _samples(trained, data, given, code)
        if online:
            columns = {**online.apply(columns, None)}
        batch = _Columns(given, {name: to_tensor(values, torch.device("cpu")) for name, values in columns.items()})
        count = len(next(iter(batch.values())))
        context = TrainContext(0, 1, False, 0, 1, request.seed, torch.arange(count), classes)
        outputs = objective.predict(trained.model, batch, context)
        if not Path(given).exists() and data.image and not any(map(is_image, outputs.values())):
            raise InputError("INPUT", repr(given), "an existing file; only models that generate images take a class")
        outputs.pop("label", None)  # a new input has no label: the one in the batch is a placeholder
        yield from _rows(given, outputs, count, Path(request.pictures), shown)


class _Columns(dict[str, Any]):
    """The columns of an input: what only the loss needs may be missing."""

    def __init__(self, given: str, columns: Batch) -> None:
        super().__init__(columns)
        self._given = given

    def __missing__(self, name: str) -> NoReturn:
        given = f"{self._given!r}, which has no column {name!r}"
        raise InputError("INPUT", given, f"a file with every column that model.predict reads; it has {', '.join(self)}")


def _samples(trained: Trained, data: DataSpec, given: str, code: Path) -> Columns:
    classes = trained.dataset.manifest.classes
    if data.image and given in classes and not Path(given).exists():  # generative models take a class
        shape = (1, data.image.height, data.image.width, 3 if data.image.mode == "RGB" else 1)
        return {"image": np.zeros(shape, np.uint8), "label": np.array([[classes.index(given)]])}
    tokenizer = None
    if data.kind == "tokens":
        tokenizer = load_tokenizer(trained.dataset.folder.read(TOKENIZER_FILE), TOKENIZER_FILE)
    return samples_of(given, data, code, tokenizer, trained.dataset.manifest.schema)


def _rows(given: str, outputs: JsonObject, count: int, pictures: Path, shown: Path) -> Iterator[JsonObject]:
    """Yield rows of values; an image is written to a file and replaced by its path, as the user gave the folder."""
    table: dict[str, list[Any]] = {}
    for name, values in outputs.items():
        if is_image(values):
            table[name] = [
                str(shown / path.name) for path in save_images(pictures, f"{Path(given).stem}-{name}", values)
            ]
        else:
            table[name] = values.tolist() if torch.is_tensor(values) else list(values)
    for number in range(count):
        yield {"input": given, **{name: values[number] for name, values in table.items()}}


if __name__ == "__main__":
    print_answer(PredictRequest, predict)
