"""Attribution of decisions: integrated gradients (Sundararajan et al. 2017), by captum."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from drivetrain_pipelines.errors import InputError

from drivetrain_workers.assessment.judging import Judge, batches, context_of
from drivetrain_workers.assessment.pictures import draw_bars, draw_images, draw_tokens
from drivetrain_workers.assessment.splits import Splits
from drivetrain_workers.classification import main_column
from drivetrain_workers.modeling.objective import Batch, Outputs

_ROWS = 4
_PATH_STEPS = 32  # from the baseline (black, silence, padding) to the input


def explain(model: torch.nn.Module, judge: Judge, splits: Splits, seed: int, folder: Path) -> Path:
    """Draw the attributions of the first decisions of the eval split; returns the path of the figure.

    A decision is the class that the model chose, or the ``score`` of the job's function.

    Raises:
        InputError: the model has no input with gradients.
    """
    name = main_column(splits.evaluation)
    batch = next(batches(splits.evaluation, _ROWS, _ROWS))
    attributions = _attributions(model, judge, batch, name, splits.classes, seed)
    target = folder / "attributions.png"
    values = batch[name]
    if name == "tokens":
        assert splits.tokenizer
        lengths = [_length(batch, row, own) for row, own in enumerate(attributions)]
        texts = [
            [splits.tokenizer.decode([token], skip_special_tokens=False) or "\u2423" for token in row[:length].tolist()]
            for row, length in zip(values, lengths, strict=True)
        ]
        return draw_tokens(texts, [own[:n] for own, n in zip(attributions, lengths, strict=True)], target)
    if values.dim() >= 3:
        return draw_images(values.numpy(), attributions, target)
    return draw_bars([f"{name} {number}" for number in range(values.shape[1])], attributions, target)


def _attributions(
    model: torch.nn.Module, judge: Judge, batch: Batch, name: str, classes: list[str], seed: int
) -> npt.NDArray[np.float64]:
    """Return the attribution of each number of the input, or of each token."""
    from captum.attr import IntegratedGradients, LayerIntegratedGradients  # imported here: takes a second

    others = [other for other in batch if other != name and torch.is_tensor(batch[other])]
    lists = {other: values for other, values in batch.items() if not torch.is_tensor(values)}
    rows = len(batch[name])
    chosen: list[torch.Tensor] = []

    def decide(given: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        outputs = judge(
            model, {name: given, **dict(zip(others, rest, strict=True)), **lists}, context_of(rows, seed, classes)
        )
        return _decision(outputs, chosen)

    decide(batch[name], *(batch[other] for other in others))  # at the input itself: this is what is explained
    options: Outputs = {
        "additional_forward_args": tuple(batch[other] for other in others) or None,
        "n_steps": _PATH_STEPS,
        "internal_batch_size": rows,  # so that a job's function always receives the same rows together
    }
    if name == "tokens":
        embedding = next((module for module in model.modules() if isinstance(module, torch.nn.Embedding)), None)
        if embedding is None:
            raise InputError("explain", "true, for a model without nn.Embedding", "false")
        method = LayerIntegratedGradients(decide, embedding)
        found = method.attribute(batch[name], torch.zeros_like(batch[name]), **options).sum(-1)
    else:
        found = IntegratedGradients(decide).attribute(batch[name].float(), **options)
    explained: npt.NDArray[np.float64] = found.detach().double().numpy()
    return explained


def _decision(outputs: Outputs, chosen: list[torch.Tensor]) -> torch.Tensor:
    """Return the explained values ``[rows]``; ``chosen`` collects the chosen classes on the first call."""
    if "score" in outputs:
        score: torch.Tensor = outputs["score"]
        return score
    if "probabilities" not in outputs:
        return -torch.as_tensor(outputs["error"])
    probabilities = torch.as_tensor(outputs["probabilities"])
    if not chosen:
        chosen.append(probabilities.argmax(-1, keepdim=True))
    return probabilities.gather(-1, chosen[0]).flatten(1).mean(1)


def _length(batch: Batch, row: int, own: npt.NDArray[np.float64]) -> int:
    """Return the number of tokens of a row without padding."""
    used = batch["tokens"][row] != 0 if "segments" not in batch else batch["segments"][row] > 0
    last = int(used.nonzero().max()) + 1 if bool(used.any()) else 1
    return min(last, len(own))
