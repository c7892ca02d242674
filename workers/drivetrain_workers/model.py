"""The user's network and loss, called the way the job file says."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.user_code import load_function

# A column of a batch: a tensor [rows, ...], or one tensor per row where rows have different lengths.
ModelInput = torch.Tensor | list[torch.Tensor]
Loss = Callable[[torch.nn.Module, dict[str, Any]], torch.Tensor]

_IGNORED = -100  # targets that count for nothing


def build_model(section: dict[str, Any], code_folder: str, facts: dict[str, int], seed: int) -> torch.nn.Module:
    """Call ``model.factory`` with ``model.args``, and with those of ``facts`` that it asks for by name.

    The random state is seeded here, so the same job builds the same weights on every rank.

    Raises:
        InputError: the factory does not take the given arguments.
    """
    factory = load_function(section["factory"], code_folder, "model.factory")
    parameters = inspect.signature(factory).parameters
    asked = {name: value for name, value in facts.items() if name in parameters}
    torch.manual_seed(seed)
    try:
        inspect.signature(factory).bind(**{**asked, **section["args"]})
    except TypeError as error:
        raise InputError("model.args", str(section["args"]), ", ".join(parameters), str(error)) from error
    return factory(**{**asked, **section["args"]})  # type: ignore[no-any-return]  # the user's function


def load_loss(section: dict[str, Any], code_folder: str) -> Loss:
    """``model.loss`` of the job, or next-token prediction."""
    if section["loss"] is None:
        return next_token_loss
    return load_function(section["loss"], code_folder, "model.loss")


def next_token_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean cross-entropy, in nats, of predicting each token from those before it.

    Args:
        batch: ``tokens`` int64 ``[rows, length + 1]``; where whole documents were packed, ``segments`` of the same
            shape: no token is predicted from another document's, and padding (segment 0) counts for nothing.
    """
    tokens = batch["tokens"]
    targets = tokens[:, 1:]
    if "segments" in batch:
        segments = batch["segments"]
        foreign = (segments[:, 1:] == 0) | (segments[:, 1:] != segments[:, :-1])
        targets = targets.masked_fill(foreign, _IGNORED)
    logits = model(tokens[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=_IGNORED)
