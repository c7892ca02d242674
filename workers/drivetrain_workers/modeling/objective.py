"""The objective of a job: its loss, the weight of the mean, its metrics, its predictions."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat

import torch
import torch.nn.functional as F
from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.user_code import load_function

from drivetrain_workers.modeling.context import TrainContext
from drivetrain_workers.spec import ModelSpec

Batch = dict[str, Any]  # columns by name: tensors, or lists of tensors where rows differ in length
Outputs = dict[str, Any]  # result of a job's function for a batch, by name
Function = Callable[..., Any]

_METRIC = "a number, a tensor with one element, or a pair (total, count) of them"
IGNORED = -100  # target that does not count
_MAX_SHOWN = 200  # characters of a value
_NO_NUMBER = (AttributeError, TypeError, ValueError, RuntimeError, OverflowError)  # of float(), also of a tensor


class Objective:
    """The functions of a job that are called with batches. Those with a parameter ``context`` receive a `TrainContext`.

    Args:
        loss: ``(model, batch)`` -> mean loss of the batch over what ``weight`` counts.
        weight: ``(batch)`` -> the number of these.
        metrics: ``(model, batch)`` -> by name, either a mean over the same number, or a pair ``(total, count)``.
        predict: ``(model, batch)`` -> by name, a value for every row.
        outcomes: ``(model, batch)`` -> decisions and correct answers; see `drivetrain_workers.spec.ModelSpec`.
    """

    def __init__(
        self,
        loss: Function,
        weight: Function,
        metrics: Function | None = None,
        predict: Function | None = None,
        outcomes: Function | None = None,
    ) -> None:
        self._loss, self._weight = _with_context(loss), _with_context(weight)
        self._metrics = _with_context(metrics) if metrics else None
        self._predict = _with_context(predict) if predict else None
        self._outcomes = _with_context(outcomes) if outcomes else None
        self.weighs_rows = inspect.unwrap(weight) is row_weight

    def loss(self, model: torch.nn.Module, batch: Batch, context: TrainContext) -> torch.Tensor:
        """Return the mean loss of a batch.

        Raises:
            InputError: the job's function returned an invalid value.
        """
        return _checked_loss(self._loss(model, batch, context=context))

    def weight(self, batch: Batch, context: TrainContext) -> float:
        """Return the number that the mean of `loss` is over.

        Raises:
            InputError: the job's function returned an invalid value.
        """
        value = self._weight(batch, context=context)
        try:
            weight = _number(value)
        except _NO_NUMBER as error:
            raise InputError("model.weight", _returned(value), "a function that returns a number") from error
        if not 0 <= weight < math.inf:
            raise InputError("model.weight", _returned(weight), "a finite number of at least 0")
        return weight

    def metrics(
        self, model: torch.nn.Module, batch: Batch, weight: float, context: TrainContext
    ) -> dict[str, tuple[float, float]]:
        """Return (total, count) of every metric.

        Raises:
            InputError: the job's function returned an invalid value.
        """
        if self._metrics is None:
            return {}
        values = self._metrics(model, batch, context=context)
        check_names(values, "model.metrics", _METRIC)
        pairs = {name: _total_and_count(name, value, weight) for name, value in values.items()}
        if taken := {"", "loss"} & pairs.keys():
            raise InputError(
                "model.metrics", f"the name {min(taken)!r}", "any other name", "The loss is always logged."
            )
        return pairs

    @property
    def has_predictions(self) -> bool:
        """Whether the job has predictions."""
        return self._predict is not None

    def predict(self, model: torch.nn.Module, batch: Batch, context: TrainContext) -> Outputs:
        """Return the job's predictions for a batch, by name.

        Raises:
            InputError: the job's function returned an invalid value.
        """
        if self._predict is None:
            return {}
        columns = self._predict(model, batch, context=context)
        rows = row_weight(batch)
        if not isinstance(columns, dict) or any(not _has_rows(column, rows) for column in columns.values()):
            wanted = f"a dictionary of columns of {rows} values, one for each row"
            raise InputError("model.predict", _returned(columns), wanted)
        return columns

    @property
    def has_outcomes(self) -> bool:
        """Whether the job reports the decisions of the model."""
        return self._outcomes is not None

    def outcomes(self, model: torch.nn.Module, batch: Batch, context: TrainContext) -> Outputs:
        """Return the decisions of the model for a batch, and the correct answers."""
        assert self._outcomes, "the job has no model.outcomes"
        outputs: Outputs = self._outcomes(model, batch, context=context)
        return outputs


def load_objective(spec: ModelSpec, code_folder: str) -> Objective:
    """Load the functions of a job; next-token prediction where it has no loss."""

    def load(key: str) -> Function | None:
        path: str | None = getattr(spec, key)
        return load_function(path, code_folder, f"model.{key}") if path else None

    loss, weight = load("loss"), load("weight")
    if loss is None:
        loss, weight = next_token_loss, next_token_weight
    return Objective(loss, weight or row_weight, load("metrics"), load("predict"), load("outcomes"))


def row_weight(batch: Batch) -> int:
    """Return the number of rows, for a mean over rows."""
    return len(next(iter(batch.values())))


def next_token_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Return the mean cross-entropy, in nats, of predicting each token from its predecessors.

    Args:
        batch: ``tokens`` int64 ``[rows, length + 1]``; where whole documents were packed, ``segments`` of the same
            shape: no token is predicted from another document, and padding (segment 0) does not count.
    """
    logits = model(batch["tokens"][:, :-1])
    if not torch.is_tensor(logits) or logits.dim() != 3:
        wanted = "a model that returns logits, a tensor [rows, length, vocabulary]"
        fix = "A model that returns something else needs a model.loss."
        raise InputError("model.factory", f"a model that returned {kind_of(logits)}", wanted, fix)
    targets = next_token_targets(batch).flatten()
    total = F.cross_entropy(logits.flatten(0, 1).float(), targets, ignore_index=IGNORED, reduction="sum")
    return total / (targets != IGNORED).sum().clamp(min=1)  # a batch of padding has the loss 0, not NaN


def next_token_weight(batch: Batch) -> torch.Tensor:
    """Return the number of tokens that `next_token_loss` averages over."""
    return (next_token_targets(batch) != IGNORED).sum()


def next_token_targets(batch: Batch) -> torch.Tensor:
    """Return the next token of each position ``[rows, length]``, or `IGNORED` at the end of a document."""
    targets: torch.Tensor = batch["tokens"][:, 1:]
    if "segments" not in batch:
        return targets
    segments = batch["segments"]
    foreign = (segments[:, 1:] == 0) | (segments[:, 1:] != segments[:, :-1])
    return targets.masked_fill(foreign, IGNORED)


def kind_of(value: Any) -> str:
    """Return type and shape of a value, for messages."""
    return f"a tensor {list(value.shape)}" if torch.is_tensor(value) else f"a value of type {type(value).__name__}"


def _checked_loss(loss: Any) -> torch.Tensor:
    wanted = "a function that returns the mean loss, a tensor of floating-point numbers without dimensions"
    if not torch.is_tensor(loss) or loss.dim() or not loss.is_floating_point():
        fix = "Reduce it with .mean()." if torch.is_tensor(loss) and loss.dim() else ""
        dtype = f" of {loss.dtype}" if torch.is_tensor(loss) else ""
        raise InputError("model.loss", f"a function that returned {kind_of(loss)}{dtype}", wanted, fix)
    if torch.is_grad_enabled() and not loss.requires_grad:
        given = "a function that returned a loss without a gradient"
        fix = "Compute it from the outputs of the given model, without detach(), item(), NumPy or torch.no_grad()."
        raise InputError("model.loss", given, "a loss that depends on the parameters of the model", fix)
    return loss


def _returned(value: Any) -> str:
    try:
        text = " ".join(repr(value).split())
    except Exception:  # of the job's own class
        text = f"a {type(value).__name__}"
    return f"a function that returned {text[:_MAX_SHOWN]}"


def _number(value: Any) -> float:
    """Convert a number, or a tensor with one; text is none."""
    if isinstance(value, str | bytes):
        raise TypeError(f"{value!r} is text")
    return float(value)


def _with_context(function: Function) -> Function:
    """Return ``function`` with a keyword argument ``context``, which is dropped if the function does not take it."""
    if "context" in inspect.signature(function).parameters:
        return function

    def without_context(*arguments: Any, context: TrainContext) -> Any:
        del context
        return function(*arguments)

    return without_context


def check_names(values: Any, key: str, wanted: str) -> None:
    """Raise InputError unless a function of the job returned a dictionary whose names are text."""
    if not isinstance(values, Mapping):
        raise InputError(key, f"a function that returned {describe_value(values)}", f"a dictionary, by name {wanted}")
    if odd := [name for name in values if not isinstance(name, str)]:
        raise InputError(key, f"a function that returned the name {describe_value(odd[0])}", "names that are texts")


def number_of(value: Any) -> float | None:
    """Return a number, or the one element of a tensor or array, as a float; None for anything else."""
    if not isinstance(value, SupportsFloat):  # a text is none, although float() reads it
        return None
    try:
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # several elements; a number that no float holds
        return None


def _total_and_count(name: str, value: Any, weight: float) -> tuple[float, float]:
    given = value if isinstance(value, tuple) else (value,)
    numbers = [number for each in given if (number := number_of(each)) is not None]
    match numbers:
        case [total, count] if len(given) == 2:
            return total, count
        case [mean] if len(given) == 1 and not isinstance(value, tuple):
            return (mean * weight, weight) if weight else (0.0, 0.0)
    raise InputError("model.metrics", f"a function that returned {name!r} = {describe_value(value)}", _METRIC)


def describe_value(value: Any) -> str:
    """Return a value of user code in one line."""
    shape = getattr(value, "shape", None)
    kind = type(value).__name__
    return f"{kind} of shape {[*shape]}" if shape is not None else f"{' '.join(repr(value).split())[:100]} ({kind})"


def _has_rows(column: Any, rows: int) -> bool:
    return hasattr(column, "__len__") and not (torch.is_tensor(column) and column.dim() == 0) and len(column) == rows
