"""The decisions of a trained model on the eval split, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.stream.columns import Columns, Ragged

from drivetrain_workers.assessment.scores import Outcomes
from drivetrain_workers.assessment.splits import Splits, evenly_spaced, row_count, take_rows
from drivetrain_workers.modeling.context import TrainContext
from drivetrain_workers.modeling.model_input import to_tensor
from drivetrain_workers.modeling.objective import IGNORED, Batch, Outputs, next_token_targets

_ROWS = 64
_MAX_ROWS = 4096  # of the eval split, evenly spaced
_MAX_TOKENS = 1 << 16  # of language: each is a decision between all tokens of the vocabulary
_MAX_BYTES = 1 << 30  # of probabilities at a time
_FREQUENCY_SLICES = ("rarest quarter of the text", "rare quarter", "common quarter", "most common quarter")

Judge = Callable[[torch.nn.Module, Batch, TrainContext], Outputs]


@dataclass(frozen=True)
class Judgements:
    """The decisions of a model on the eval split.

    Attributes:
        outcomes: None where the job returns no probabilities.
        errors: error of each row, where the job returns errors instead of probabilities.
        slices: slice of each row with an error.
    """

    outcomes: Outcomes | None
    errors: npt.NDArray[np.float64]
    slices: npt.NDArray[Any]


def context_of(rows: int, seed: int, classes: Iterable[str]) -> TrainContext:
    """Return the context of a call outside training, with the first rows of the eval split."""
    return TrainContext(0, 1, False, 0, 1, seed, torch.arange(rows), tuple(classes))


def batches(columns: Columns, size: int = _ROWS, max_rows: int = _MAX_ROWS) -> Iterator[Batch]:
    """Yield batches of rows, evenly spaced over the split, as the model takes them."""
    rows = evenly_spaced(row_count(columns), max_rows)
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        yield {name: to_tensor(take_rows(values, some), torch.device("cpu")) for name, values in columns.items()}


@torch.no_grad()
def judge_all(model: torch.nn.Module, judge: Judge, splits: Splits, seed: int) -> Judgements:
    """Collect the decisions of a model.

    Raises:
        InputError: the job's function returned neither probabilities nor errors, or another shape.
    """
    outcomes: list[Outcomes] = []
    errors: list[npt.NDArray[np.float64]] = []
    slices: list[npt.NDArray[Any]] = []
    for batch in batches(splits.evaluation, *_batch_and_max_rows(splits)):
        outputs = judge(model, batch, context_of(len(next(iter(batch.values()))), seed, splits.classes))
        if "probabilities" in outputs:
            outcomes.append(_outcomes(outputs, batch, splits.classes))
        elif "error" in outputs:
            errors.append(torch.as_tensor(outputs["error"]).double().numpy())
            slices.append(_names(outputs, batch, splits.classes))
        else:
            wanted = "a dictionary with probabilities or error"
            raise InputError("model.outcomes", f"a function that returned {', '.join(outputs) or 'nothing'}", wanted)
    if sum(len(each.targets) for each in outcomes) + sum(map(len, errors)) == 0:
        raise InputError("model.outcomes", "a function that returned no decision", "decisions with a target")
    if outcomes:
        return Judgements(Outcomes.concatenate(outcomes), np.zeros(0), np.zeros(0))
    return Judgements(None, np.concatenate(errors), np.concatenate(slices))


def _batch_and_max_rows(splits: Splits) -> tuple[int, int]:
    """Return the rows of a batch, and the upper bound of all rows."""
    tokens = splits.evaluation.get("tokens")
    if tokens is None or isinstance(tokens, Ragged) or "label" in splits.evaluation:
        return _ROWS, _MAX_ROWS
    length = int(tokens.shape[1])
    at_once = _MAX_BYTES // (length * vocabulary(splits) * 4)
    return max(1, min(_ROWS, at_once)), max(1, _MAX_TOKENS // length)


def token_counts(columns: Columns, size: int) -> npt.NDArray[np.int64]:
    """Count the occurrences of each of ``size`` tokens, without padding."""
    tokens = np.asarray(columns["tokens"])
    used = tokens[np.asarray(columns["segments"]) > 0] if "segments" in columns else tokens.ravel()
    counts: npt.NDArray[np.int64] = np.bincount(used, minlength=size)
    return counts


def vocabulary(splits: Splits) -> int:
    """Return the size of the vocabulary."""
    assert splits.tokenizer, "the data has no tokens"
    return int(splits.tokenizer.get_vocab_size())


def next_token_judge(counts: npt.NDArray[np.int64]) -> Judge:
    """Return the decisions of a language model without its own functions: each token, sliced by its frequency.

    Args:
        counts: counts of each token in the training data.
    """
    order = np.argsort(counts)
    share = np.empty(len(order))
    share[order] = np.cumsum(counts[order]) / max(1, counts.sum())
    rarity = np.minimum((share * len(_FREQUENCY_SLICES)).astype(int), len(_FREQUENCY_SLICES) - 1)
    names = np.array(_FREQUENCY_SLICES)[rarity]

    def judge(model: torch.nn.Module, batch: Batch, context: TrainContext) -> Outputs:
        del context
        targets = next_token_targets(batch)
        probabilities = model(batch["tokens"][:, :-1]).float().softmax(-1)
        next_token = probabilities[:, -1].amax(-1)
        slices = names[batch["tokens"][:, 1:].numpy()]
        return {"probabilities": probabilities, "targets": targets, "slice": slices, "score": next_token}

    return judge


def _outcomes(outputs: Outputs, batch: Batch, classes: list[str]) -> Outcomes:
    probabilities = torch.as_tensor(outputs["probabilities"])
    targets = torch.as_tensor(outputs.get("targets", batch.get("label")))
    if "targets" not in outputs:
        targets = targets[:, 0]
    if probabilities.shape[:-1] != targets.shape:
        given = f"probabilities {[*probabilities.shape]} with targets {[*targets.shape]}"
        raise InputError("model.outcomes", given, "probabilities [rows, ..., classes], targets [rows, ...]")
    wanted = (targets != IGNORED).numpy()
    names = (
        _names(outputs, batch, classes) if "slice" in outputs or "label" in batch else _class_names(targets, classes)
    )
    names = np.broadcast_to(names.reshape(names.shape + (1,) * (wanted.ndim - names.ndim)), wanted.shape)
    return Outcomes.of(probabilities.float().numpy()[wanted], targets.numpy()[wanted], names[wanted])


def _names(outputs: Outputs, batch: Batch, classes: list[str]) -> npt.NDArray[Any]:
    if "slice" in outputs:
        return np.asarray(outputs["slice"])
    labels = batch["label"][:, 0] if "label" in batch else torch.zeros(len(next(iter(batch.values()))))
    return _class_names(labels, classes)


def _class_names(labels: torch.Tensor, classes: list[str]) -> npt.NDArray[Any]:
    numbers = labels.long().clamp(min=0).numpy()
    names = classes or [str(number) for number in range(int(numbers.max()) + 1)]
    found: npt.NDArray[Any] = np.array(names)[numbers]
    return found
