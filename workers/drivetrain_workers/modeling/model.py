"""The user's network, built as the job file specifies."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.user_code import load_function
from torch.utils.checkpoint import checkpoint

from drivetrain_workers.spec import ModelSpec


def build_model(spec: ModelSpec, code_folder: str, facts: dict[str, int], seed: int) -> torch.nn.Module:
    """Call ``model.factory`` with ``model.args``, ``model.files``, and the ``facts`` that it has parameters for.

    The random state is seeded here, so the same job builds the same weights on every rank. A model in eval mode, as
    ``from_pretrained`` of transformers returns it, is set to training mode as a whole. Parts in eval mode of a model in
    training mode stay so: the factory wants it.

    Raises:
        InputError: the factory does not take the given arguments, or does not return a model with something to train.
        UserCodeError: the factory raised an exception.
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
    model = _checked(factory(**given))
    return model if model.training else model.train()


def persistent_buffers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the buffers that a model's ``state_dict`` contains, each once, by name."""
    found: dict[str, torch.Tensor] = {}
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(prefix, recurse=False):
            temporary = name.rpartition(".")[2] in module._non_persistent_buffers_set
            if not temporary and not any(buffer is other for other in found.values()):
                found[name] = buffer
    return found


def temporary_buffers(model: torch.nn.Module) -> set[str]:
    """Return the names of the other buffers, which earlier checkpoints of ZeRO 3 contain too."""
    return {name for name, _ in model.named_buffers()} - persistent_buffers(model).keys()


def check_parameters(model: torch.nn.Module, precision: str) -> None:
    """Raise `InputError` for weights that cannot be trained: without dimensions, complex, 16 bits instead of 32."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 0:
            given = f"a model whose parameter {name} has no dimensions"
            raise InputError("model.factory", given, "parameters with dimensions", "Give it the shape [1].")
        trainable = parameter.is_floating_point() if precision == "bf16" else parameter.dtype is torch.float32
        if parameter.requires_grad and not trainable:
            given = f"a model whose trained parameter {name} is {parameter.dtype}"
            fix = "Return model.float(), or set training.precision." if parameter.is_floating_point() else ""
            raise InputError("model.factory", given, "trained parameters of torch.float32", fix)


def _checked(model: Any) -> torch.nn.Module:
    """Return the result of a factory if it can be trained. Raises `InputError`, also for state in no checkpoint."""
    if not isinstance(model, torch.nn.Module):
        given = f"a function that returned {type(model).__name__}"
        raise InputError("model.factory", given, "a function that returns a torch.nn.Module")
    allowed = "a model with at least one parameter to train"
    if next(model.parameters(), None) is None:
        fix = "Are its layers attributes of the module? Lists of layers must be torch.nn.ModuleList."
        raise InputError("model.factory", f"a {type(model).__name__} without parameters", allowed, fix)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        given = f"a {type(model).__name__} in which requires_grad is False for all parameters"
        raise InputError("model.factory", given, allowed)
    for name, module in model.named_modules():
        if type(module).get_extra_state is not torch.nn.Module.get_extra_state:
            given = f"a model with {name or 'a root'}.get_extra_state"
            raise InputError("model.factory", given, "a model whose state is in parameters and buffers")
    return model


class _Recomputed:
    """Mixin for a module's class: activations of its forward pass are recomputed in the backward pass.

    The whole call is repeated, hooks included, because ZeRO-3 gathers parameters in hooks.
    """

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        call = super().__call__  # type: ignore[misc]  # the module's
        if not torch.is_grad_enabled():
            return call(*arguments, **named)
        module: torch.nn.Module = self  # type: ignore[assignment]
        if next(module.buffers(), None) is None:
            return checkpoint(call, *arguments, use_reentrant=False, **named)
        contexts = nullcontext(), _unchanged_buffers(module)
        return checkpoint(call, *arguments, use_reentrant=False, context_fn=lambda: contexts, **named)


@contextmanager
def _unchanged_buffers(module: torch.nn.Module) -> Iterator[None]:
    """Restore the buffers at the end: a repeated forward pass must not count twice in the statistics of batch norm."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.data.copy_(value)


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
