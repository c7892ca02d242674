"""The switches of a model that no optimizer owns: the mode of each module, and what is frozen."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class ModelFlags:
    """The switches of a model, by name; all others are on.

    Attributes:
        evaluating: modules in eval mode.
        frozen: parameters that need no gradient.
    """

    evaluating: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Return the current switches."""
        return cls(
            tuple(name for name, module in model.named_modules() if not module.training),
            tuple(name for name, parameter in model.named_parameters() if not parameter.requires_grad),
        )

    def apply(self, model: nn.Module) -> None:
        """Set the switches of a model.

        A module may do more in its ``train`` than set the mode. Therefore it is called where the mode differs, parents
        first, before the modes are set.
        """
        modes = {module: name not in self.evaluating for name, module in model.named_modules()}
        for module, training in modes.items():
            if module.training is not training:
                module.train(training)
        for module, training in modes.items():
            module.training = training
        for name, parameter in model.named_parameters():
            if parameter.requires_grad is (name in self.frozen):
                parameter.requires_grad_(name not in self.frozen)


@contextmanager
def evaluation(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Set a model to eval mode, without gradients; restore its switches and the random generators at the end."""
    flags, python, numpy = ModelFlags.of(model), random.getstate(), np.random.get_state()
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        model.eval()
        try:
            yield
        finally:
            flags.apply(model)
            random.setstate(python)
            np.random.set_state(numpy)
