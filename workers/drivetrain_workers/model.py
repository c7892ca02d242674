"""The user's network and loss, called the way the job file says."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.user_code import load_function
from torch.utils.checkpoint import checkpoint

# A column of a batch: a tensor [rows, ...], or one tensor per row where rows have different lengths.
ModelInput = torch.Tensor | list[torch.Tensor]
Loss = Callable[[torch.nn.Module, dict[str, Any]], torch.Tensor]
Weight = Callable[[dict[str, Any]], torch.Tensor | int]

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


def load_loss(section: dict[str, Any], code_folder: str) -> tuple[Loss, Weight]:
    """``model.loss`` of the job, or next-token prediction; and what its mean is over: ``model.weight``, or rows."""
    if section["loss"] is None:
        return next_token_loss, next_token_weight
    loss = load_function(section["loss"], code_folder, "model.loss")
    if section.get("weight") is None:
        return loss, row_weight
    return loss, load_function(section["weight"], code_folder, "model.weight")


def row_weight(batch: dict[str, Any]) -> int:
    """A mean over rows."""
    return len(next(iter(batch.values())))


def next_token_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean cross-entropy, in nats, of predicting each token from those before it.

    Args:
        batch: ``tokens`` int64 ``[rows, length + 1]``; where whole documents were packed, ``segments`` of the same
            shape: no token is predicted from another document's, and padding (segment 0) counts for nothing.
    """
    logits = model(batch["tokens"][:, :-1])
    targets = _targets(batch).flatten()
    total = F.cross_entropy(logits.flatten(0, 1).float(), targets, ignore_index=_IGNORED, reduction="sum")
    return total / (targets != _IGNORED).sum().clamp(min=1)  # a batch of padding has the loss 0, not NaN


def next_token_weight(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Tokens that `next_token_loss` is a mean over."""
    return (_targets(batch) != _IGNORED).sum()


def _targets(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    targets = batch["tokens"][:, 1:]
    if "segments" not in batch:
        return targets
    segments = batch["segments"]
    foreign = (segments[:, 1:] == 0) | (segments[:, 1:] != segments[:, :-1])
    return targets.masked_fill(foreign, _IGNORED)


class _Recomputed:
    """Mixed into a module's class: what its forward pass computes is not kept but computed again when it is needed.

    The whole call is repeated, hooks included, because ZeRO-3 gathers parameters in hooks.
    """

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return super().__call__(*arguments, **named)  # type: ignore[misc]  # the module's
        return checkpoint(super().__call__, *arguments, use_reentrant=False, **named)  # type: ignore[misc]


def checkpoint_activations(model: torch.nn.Module) -> int:
    """Have every module that stands in a ``ModuleList`` or ``Sequential`` keep its inputs only (Chen et al. 2016).

    Of modules within modules the outermost do. Names and parameters stay as they are. Returns how many there are.

    Raises:
        InputError: the model has none.
    """
    found = list(_blocks(model))
    for module in found:
        module.__class__ = type(type(module).__name__, (_Recomputed, type(module)), {})
    if not found:
        given = f"true, for a {type(model).__name__} without ModuleList and Sequential"
        raise InputError("training.activation_checkpointing", given, "false")
    return len(found)


def _blocks(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    for child in module.children():
        if isinstance(module, torch.nn.ModuleList | torch.nn.Sequential):
            yield child
        else:
            yield from _blocks(child)
