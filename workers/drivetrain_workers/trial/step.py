"""One optimizer step and one evaluation of the plain model, with the functions of the job."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from drivetrain_pipelines.errors import InputError

from drivetrain_workers.modeling.context import TrainContext
from drivetrain_workers.modeling.objective import Batch, Objective
from drivetrain_workers.spec import TrainingSpec, TrainJob

ErrorsOf = Callable[[str, str], AbstractContextManager[None]]  # of a key; what was given


@dataclass(frozen=True)
class Tried:
    """Results of a step and of the evaluation after it."""

    loss: float
    eval_loss: float
    metrics: dict[str, float]


def trained_parameters(model: torch.nn.Module) -> int:
    """Return the number of parameters that are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def try_step(
    model: torch.nn.Module, objective: Objective, job: TrainJob, train: Batch, evaluation: Batch, errors_of: ErrorsOf,
    classes: tuple[str, ...],
) -> Tried:  # fmt: skip
    """Train one step on a batch, then evaluate another one.

    Args:
        errors_of: names the key whose function is called.
        classes: names of the labels.

    Raises:
        InputError: a function of the job failed, or returned an invalid value.
    """
    optimizer = _optimizer(model, job.training)
    model.train()
    _weigh(objective, train, _context(job, train, True, classes), errors_of)
    with errors_of("model.loss" if job.model.loss else "model.factory", "a function" if job.model.loss else "a model"):
        loss = objective.loss(model, train, _context(job, train, True, classes))
        value = _checked(loss, job)
        torch.autograd.backward(loss)
        _check_gradients(model)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        eval_loss, metrics = _evaluate(model, objective, job, evaluation, errors_of, classes)
    return Tried(value, eval_loss, metrics)


def _evaluate(
    model: torch.nn.Module,
    objective: Objective,
    job: TrainJob,
    batch: Batch,
    errors_of: ErrorsOf,
    classes: tuple[str, ...],
) -> tuple[float, dict[str, float]]:
    weight = _weigh(objective, batch, _context(job, batch, False, classes), errors_of)
    with errors_of("model.loss", "a function, in an evaluation,"):
        loss = float(objective.loss(model, batch, _context(job, batch, False, classes)))
    with errors_of("model.metrics", "a function"):
        pairs = objective.metrics(model, batch, weight, _context(job, batch, False, classes))
    metrics = {name: total / count if count else math.nan for name, (total, count) in pairs.items()}
    job.training.best.score(loss, metrics)
    with errors_of("model.predict", "a function"):
        objective.predict(model, batch, _context(job, batch, False, classes))
    if objective.has_outcomes:
        with errors_of("model.outcomes", "a function"):
            objective.outcomes(model, batch, _context(job, batch, False, classes))
    return loss, metrics


def _weigh(objective: Objective, batch: Batch, context: TrainContext, errors_of: ErrorsOf) -> float:
    with errors_of("model.weight", "a function"):
        return objective.weight(batch, context)


def _checked(loss: torch.Tensor, job: TrainJob) -> float:
    """Return the value of a loss. Raises InputError if training would stop at it."""
    value = float(loss.detach())
    if not math.isfinite(value) and job.training.guard.non_finite == "stop":
        key = "model.loss" if job.model.loss else "model.factory"
        raise InputError(key, f"a function that returned {value} for the first samples", "a finite loss")
    return value


def _check_gradients(model: torch.nn.Module) -> None:
    if all(parameter.grad is None for parameter in model.parameters()):
        raise InputError("model.loss", "a function whose result depends on no parameter", "one that uses the model")


def _optimizer(model: torch.nn.Module, spec: TrainingSpec) -> torch.optim.Optimizer:
    """Return an optimizer that is as close to the job's as torch has one: a step must be possible, not equal."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    settings = spec.optimizer
    if settings.type == "SGD":
        return torch.optim.SGD(trained, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
    betas, decay = settings.betas, settings.weight_decay
    return torch.optim.AdamW(trained, lr=settings.lr, betas=betas, eps=settings.eps, weight_decay=decay)


def _context(job: TrainJob, batch: Batch, training: bool, classes: tuple[str, ...]) -> TrainContext:
    first = next(iter(batch.values()))
    device = first.device if torch.is_tensor(first) else first[0].device
    return TrainContext(
        0, job.training.steps or 1, training, 0, 1, job.seed, torch.arange(len(first), device=device), classes
    )
