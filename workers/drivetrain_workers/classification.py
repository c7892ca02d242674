"""Functions for classification jobs: name them in a job, or call them from your own functions.

The model maps the input (the column ``image``, ``mel``, ``tokens``, or the first other than the label) to logits
``[rows, classes]``; ``label`` is ``[rows, 1]``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from drivetrain_pipelines.errors import InputError

from drivetrain_workers.modeling.context import TrainContext
from drivetrain_workers.modeling.objective import Outputs, kind_of

Batch = dict[str, torch.Tensor]


def main_column(names: Any) -> str:
    """Return the column with the model's input: image, recording, tokens, or the first other than the label."""
    known = [name for name in ("image", "mel", "tokens") if name in names]
    return known[0] if known else next(name for name in names if name != "label")


def loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Return the mean cross-entropy, in nats."""
    return F.cross_entropy(_logits(model, batch), batch["label"][:, 0])


def metrics(model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    """Compute the accuracy."""
    return {"accuracy": (_logits(model, batch).argmax(-1) == batch["label"][:, 0]).float().mean()}


def outcomes(model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    """Return the probabilities of the classes."""
    return {"probabilities": _logits(model, batch).softmax(-1)}


def predict(model: torch.nn.Module, batch: Batch, context: TrainContext) -> Outputs:
    """Return the class of each row, the confidence of the model, and the label."""
    confidence, chosen = _logits(model, batch).softmax(-1).max(-1)
    return {
        "class": context.names(chosen),
        "confidence": confidence,
        "label": context.names(batch["label"][:, 0]),
    }


def _logits(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    logits = model(batch[main_column(batch)])
    if not torch.is_tensor(logits) or logits.dim() != 2:
        wanted = "a model that returns logits, a tensor [rows, classes]"
        raise InputError("model.factory", f"a model that returned {kind_of(logits)}", wanted)
    return logits
