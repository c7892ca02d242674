"""The user's network, built as the job file specifies."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.user_code import load_function
from torch.utils.checkpoint import checkpoint

from drivetrain_workers.spec import ModelSpec


def build_model(spec: ModelSpec, code_folder: str, facts: dict[str, int], seed: int) -> torch.nn.Module:
    """Call ``model.factory`` with ``model.args``, ``model.files``, and the ``facts`` that it has parameters for.

    The random state is seeded here, so the same job builds the same weights on every rank.

    Raises:
        InputError: the factory does not take the given arguments.
    """
    factory = load_function(spec.factory, code_folder, "model.factory")
    parameters = inspect.signature(factory).parameters
    given: dict[str, Any] = {name: value for name, value in facts.items() if name in parameters}
    given |= spec.files | spec.args
    torch.manual_seed(seed)
    try:
        inspect.signature(factory).bind(**given)
    except TypeError as error:
        raise InputError("model.args", str(spec.args), ", ".join(parameters), str(error)) from error
    return factory(**given)  # type: ignore[no-any-return]  # the user's function


class _Recomputed:
    """Mixin for a module's class: activations of its forward pass are recomputed in the backward pass.

    The whole call is repeated, hooks included, because ZeRO-3 gathers parameters in hooks.
    """

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return super().__call__(*arguments, **named)  # type: ignore[misc]  # the module's
        return checkpoint(super().__call__, *arguments, use_reentrant=False, **named)  # type: ignore[misc]


def checkpoint_activations(model: torch.nn.Module) -> int:
    """Make every module in a ``ModuleList`` or ``Sequential`` keep its inputs only (Chen et al. 2016).

    Of nested modules only the outermost are changed. Names and parameters stay the same. Returns the number of modules.

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


def has_blocks(model: torch.nn.Module) -> bool:
    """Return whether `checkpoint_activations` finds modules to change."""
    return any(True for _ in _blocks(model))


def _blocks(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    for child in module.children():
        if isinstance(module, torch.nn.ModuleList | torch.nn.Sequential):
            yield child
        else:
            yield from _blocks(child)
