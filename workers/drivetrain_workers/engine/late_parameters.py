"""Parameters without a gradient in some steps: unused parts of a model, parts that are used later or now and then.

`torch.optim` leaves them as they are in such a step. DeepSpeed updates them with a gradient of zero, which decays
weights and moments, and under ZeRO 1 to 3 has one number of updates for all. `LateParameters` corrects that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from drivetrain_pipelines.errors import InputError
from torch import nn

from drivetrain_workers.engine.deepspeed_internals import (
    before_overwriting,
    flat_states,
    missed_updates,
    publish_weights,
)
from drivetrain_workers.engine.flat_state import COUNTER, WEIGHTS, FlatState, Span

_FIRST, _SECOND = "exp_avg", "exp_avg_sq"  # moments of Adam


@dataclass(frozen=True)
class _Held:
    """A part of a parameter on this rank, as it was before the update.

    Attributes:
        before: weights and moments, by kind; moments may not exist before the first update.
        counter: number of updates, where this parameter has its own.
        learning_rate: of the update.
    """

    state: FlatState
    span: Span
    before: dict[str, torch.Tensor]
    counter: float | None
    learning_rate: float

    def restore(self) -> None:
        """Undo the update."""
        for kind, tensor in self.state.tensors():
            part = tensor[self.span.at : self.span.end]
            if kind in self.before:
                part.copy_(self.before[kind])
            else:
                part.zero_()
        if self.counter is not None and COUNTER in self.state.optimizer:
            self.state.optimizer[COUNTER].fill_(self.counter)

    def repeat(self, updates: int, decoupled: bool) -> None:
        """Repeat the update of Adam's weights for a parameter's own number of updates; moments do not depend on it.

        Args:
            decoupled: weights decay as in AdamW.
        """
        parts = {kind: tensor[self.span.at : self.span.end] for kind, tensor in self.state.tensors()}
        group = self.state.group
        first, second = (1 - beta**updates for beta in group["betas"])
        weights = parts[WEIGHTS].copy_(self.before[WEIGHTS])
        if decoupled:
            weights.mul_(1 - self.learning_rate * group["weight_decay"])
        scale = (parts[_SECOND].sqrt() / second**0.5).add_(group["eps"])
        weights.addcdiv_(parts[_FIRST], scale, value=-self.learning_rate / first)


class LateParameters:
    """Leaves parameters without a gradient as they are.

    Costs a function call per parameter where all have gradients; otherwise a copy of such parameters, one collective of
    a byte per parameter, and the distribution of the weights.

    Args:
        model: the network, before DeepSpeed gets it.
        optimizer: its name in the job.

    Attributes:
        counting: False during the backward pass of a padding row.
        uneven: whether parameters may have a gradient on some ranks only.
    """

    def __init__(self, model: nn.Module, optimizer: str) -> None:
        named = dict(model.named_parameters())
        self._names = [name for name, parameter in named.items() if parameter.requires_grad]
        self._frozen = {name: parameter for name, parameter in named.items() if not parameter.requires_grad}
        self._counts_updates, self._decoupled = optimizer in ("Adam", "AdamW"), optimizer == "AdamW"
        self._with_gradient: set[str] = set()
        self._held: list[_Held] = []
        self.counting = True
        self.uneven = True
        for name in self._names:
            named[name].register_post_accumulate_grad_hook(partial(self._note, name))  # type: ignore[no-untyped-call]

    def _note(self, name: str, _: torch.Tensor) -> None:
        if self.counting:
            self._with_gradient.add(name)

    def hold(self, engine: Any) -> int:
        """Copy what the update may have to leave unchanged; call it before the update.

        Returns:
            Number of parameters without a gradient on this rank.

        Raises:
            InputError: a parameter that was frozen at the start is not frozen any more; the optimizer does not know it.
        """
        for name, parameter in self._frozen.items():
            if parameter.requires_grad:
                fix = "Freeze it after the first step instead."
                given = f"a model whose parameter {name} was frozen and is not any more"
                raise InputError(
                    "model.factory", given, "requires_grad for all parameters that train at some time", fix
                )
        missing = {name for name in self._names if name not in self._with_gradient}
        names = missing | missed_updates(engine).keys()
        states = flat_states(engine) if names else []
        self._held = [
            _Held(state, span, _copies(state, span), _own_counter(engine, state), state.group["lr"])
            for state in states
            for span in state.spans
            if span.parameter in names
        ]
        return len(missing)

    def settle(self, engine: Any, device: torch.device, missing: bool, applied: bool) -> None:
        """Correct the update of parameters without a gradient on any rank, and of those that had none before.

        Args:
            missing: whether `hold` returned more than 0 on any rank.
            applied: whether there was an update.

        Raises:
            InputError: a parameter has a gradient on some ranks only, and the ZeRO stage does not allow it.
        """
        missed = missed_updates(engine)
        if applied and (missing or missed):
            absent = self._absent(engine, device)
            for name in absent:
                missed[name] = missed.get(name, 0) + 1
            before_overwriting(engine)
            for held in self._held:
                self._correct(engine, held, absent)
            if missed:
                publish_weights(engine)
        self._held = []
        self._with_gradient.clear()

    def _absent(self, engine: Any, device: torch.device) -> set[str]:
        """Return the parameters without a gradient on any rank; the same on every rank."""
        found = torch.tensor([name in self._with_gradient for name in self._names], dtype=torch.uint8)
        either = torch.stack([found, 1 - found]).to(device)
        dist.all_reduce(either, dist.ReduceOp.MAX)
        present, absent = either.tolist()
        some = next((name for name, both in zip(self._names, map(min, present, absent), strict=True) if both), None)
        if some and not self.uneven:
            given = (
                f"{engine.zero_optimization_stage()}, for a step in which only some ranks have a gradient for {some}"
            )
            raise InputError("training.zero_stage", given, "0 or 1", "Other stages would mix up the gradients.")
        return {name for name, one in zip(self._names, present, strict=True) if not one}

    def _correct(self, engine: Any, held: _Held, absent: set[str]) -> None:
        name = held.span.parameter
        missed = missed_updates(engine).get(name, 0)
        if name in absent:
            held.restore()
        elif missed and self._counts_updates and engine.zero_optimization_stage() > 0:
            held.repeat(int(held.state.optimizer[COUNTER]) - missed, self._decoupled)


def _own_counter(engine: Any, state: FlatState) -> float | None:
    """Return the number of updates of a parameter under ZeRO 0; None where it is that of many parameters."""
    own = engine.zero_optimization_stage() == 0 and state.tensor_counters
    return float(state.optimizer.get(COUNTER, 0)) if own else None


def _copies(state: FlatState, span: Span) -> dict[str, torch.Tensor]:
    copies = {kind: tensor[span.at : span.end].clone() for kind, tensor in state.tensors()}
    if copies[WEIGHTS].numel() != span.length:  # swapped to disk
        given = f"nvme, for a model whose parameter {span.parameter} has no gradient in some steps"
        raise InputError("training.offload.optimizer", given, "none or cpu")
    return copies
