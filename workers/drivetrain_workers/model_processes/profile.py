"""Requirements of a model, measured on fake tensors, which have shapes and no memory."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.stream.columns import Columns, Ragged, Values
from drivetrain_pipelines.stream.dataset import open_dataset
from drivetrain_pipelines.user_code import describe, user_code_error
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from drivetrain_workers.engine.training_data import model_facts
from drivetrain_workers.model_processes.requests import ModelProfile, ProfileRequest
from drivetrain_workers.model_processes.trained import print_answer
from drivetrain_workers.modeling.context import TrainContext
from drivetrain_workers.modeling.model import build_model, checkpoint_activations, has_blocks
from drivetrain_workers.modeling.model_input import to_tensor
from drivetrain_workers.modeling.objective import Objective, load_objective
from drivetrain_workers.spec import TrainJob

_ROWS = (1, 3)  # two sizes of micro-batch separate fixed memory from memory per row
_SIDE = 1024  # of the matrices whose product measures the speed of this machine


def profile(request: ProfileRequest) -> ModelProfile:
    """Measure parameters, floating-point operations, and bytes that a training step keeps.

    Raises:
        InputError: the model cannot be run on fake tensors.
    """
    job = TrainJob.model_validate_json(json.dumps(request.job))
    dataset = open_dataset(request.dataset_folder, job.data)
    columns = dataset.read("train", np.arange(max(_ROWS)))
    facts = model_facts(dataset, job.data)
    objective = load_objective(job.model, request.code_folder)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            model = build_model(job.model, request.code_folder, facts, job.seed)
            plain = recomputed = _measure(model, objective, columns)
            if job.training.activation_checkpointing or has_blocks(model):
                checkpoint_activations(model)
                recomputed = _measure(model, objective, columns)
    except InputError:
        raise
    except Exception as error:  # any error of the user's model
        given = (
            f"a model that fails without real numbers: {user_code_error(error, request.code_folder) or describe(error)}"
        )
        raise InputError("model.factory", given, "one that can be run on torch's fake tensors") from error
    sizes = [parameter.numel() for parameter in model.parameters()]
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    own = recomputed if job.training.activation_checkpointing else plain
    return ModelProfile(
        parameters=sum(sizes),
        trained=trained,
        tensors=len(sizes),
        largest=max(sizes),
        flops_per_row=plain.flops,
        forward_flops_per_row=plain.forward_flops,
        recomputed_flops_per_row=recomputed.flops - plain.flops,
        kept_bytes_per_row=own.kept_per_row,
        kept_bytes_fixed=own.kept_fixed,
        row_bytes=sum(_row_bytes(values) for values in columns.values()),
        matmul_flops=_matmul_flops(),
    )


@dataclass(frozen=True)
class _Passes:
    """Operations of the passes per row, and the bytes kept between them."""

    flops: float
    forward_flops: float
    kept_per_row: float
    kept_fixed: float


def _measure(model: torch.nn.Module, objective: Objective, columns: Columns) -> _Passes:
    """Run forward and backward passes with two numbers of rows."""
    kept, forward, whole = [], [], []
    for rows in _ROWS:
        batch = _tensors(columns, rows)
        context = TrainContext(0, 1, True, 0, 1, 0, torch.arange(rows))
        counter = _KeptBytes(model)
        with counter, FlopCounterMode(display=False) as flops:
            loss = objective.loss(model, batch, context)
            forward.append(flops.get_total_flops())
            torch.autograd.backward(loss)
        kept.append(counter.bytes)
        whole.append(flops.get_total_flops())
    few, many = _ROWS
    span = many - few
    per_row = (kept[1] - kept[0]) / span
    return _Passes(
        (whole[1] - whole[0]) / span, (forward[1] - forward[0]) / span, per_row, max(0.0, kept[0] - few * per_row)
    )


class _KeptBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts the memory that autograd keeps for the backward pass, without the model's own."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.bytes = 0
        self._own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
        super().__init__(self._keep, lambda tensor: tensor)

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._own:
            self._own.add(storage._cdata)
            self.bytes += storage.nbytes()
        return tensor


def _tensors(columns: Columns, rows: int) -> dict[str, Any]:
    """Return columns as tensors, as a rank passes them to the model."""
    return {name: to_tensor(values[slice(0, rows)], torch.device("cpu")) for name, values in columns.items()}


def _matmul_flops() -> float:
    """Measure the operations per second of one core of this machine, in fp32."""
    torch.set_num_threads(1)
    square, seconds = torch.ones(_SIDE, _SIDE), []
    for _ in range(5):
        began = time.perf_counter()
        square @ square
        seconds.append(time.perf_counter() - began)
    return 2 * _SIDE**3 / min(seconds)


def _row_bytes(values: Values) -> float:
    flat = values.values if isinstance(values, Ragged) else values
    return float(flat.nbytes) / len(values)


if __name__ == "__main__":
    print_answer(ProfileRequest, lambda request: json.dumps(asdict(profile(request))))
