"""A small U-Net (Ronneberger et al. 2015) that predicts the noise in a picture, and pictures generated with it."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from distance import two_sample_accuracy
from drivetrain_workers.assessment.splits import Splits
from drivetrain_workers.modeling.context import TrainContext
from torch import nn

_SIDE = 16
_STEPS = 24  # denoising steps
_SCALE = 4  # scale factor of the output
_ASSESSED = 500  # pictures
_GROUPS = 8


class Block(nn.Module):
    """Two convolutions, conditioned on time and class, with a residual connection."""

    def __init__(self, in_width: int, width: int, condition: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.GroupNorm(_GROUPS, in_width), nn.GroupNorm(_GROUPS, width)
        self.conv_1, self.conv_2 = nn.Conv2d(in_width, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1)
        self.condition = nn.Linear(condition, 2 * width)
        self.shortcut = nn.Identity() if in_width == width else nn.Conv2d(in_width, width, 1)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Map ``[rows, in_width, side, side]`` to ``[rows, width, side, side]``."""
        scale, shift = self.condition(condition)[:, :, None, None].chunk(2, 1)
        y = self.conv_1(F.silu(self.norm_1(x)))
        return self.shortcut(x) + self.conv_2(F.silu(self.norm_2(y) * (1 + scale) + shift))


class UNet(nn.Module):
    """Noisy pictures float ``[rows, 1, 16, 16]``, their times ``[rows]`` and classes, to the noise in them."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        condition = 4 * width
        self.classes = nn.Embedding(classes, condition)
        self.time = nn.Sequential(nn.Linear(width, condition), nn.SiLU(), nn.Linear(condition, condition))
        self.stem = nn.Conv2d(1, width, 3, 1, 1)
        self.down_1, self.down_2 = Block(width, width, condition), Block(width, 2 * width, condition)
        self.middle = Block(2 * width, 2 * width, condition)
        self.up_2, self.up_1 = Block(4 * width, width, condition), Block(2 * width, width, condition)
        self.norm, self.out = nn.GroupNorm(_GROUPS, width), nn.Conv2d(width, 1, 3, 1, 1)
        self.frequencies: torch.Tensor
        self.register_buffer("frequencies", torch.exp(torch.linspace(0, math.log(1000), width // 2)))

    def forward(self, x: torch.Tensor, time: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Predict the noise."""
        angles = time[:, None] * self.frequencies
        condition = F.silu(self.time(torch.cat([angles.sin(), angles.cos()], 1)) + self.classes(classes))
        whole = self.down_1(self.stem(x), condition)
        half = self.down_2(F.avg_pool2d(whole, 2), condition)
        quarter = self.middle(F.avg_pool2d(half, 2), condition)
        half = self.up_2(torch.cat([F.interpolate(quarter, scale_factor=2.0), half], 1), condition)
        whole = self.up_1(torch.cat([F.interpolate(half, scale_factor=2.0), whole], 1), condition)
        return self.out(F.silu(self.norm(whole)))


def unet(classes: int, width: int = 32) -> UNet:
    """Build the network; ``classes`` comes from the data."""
    return UNet(classes, width)


def loss(model: nn.Module, batch: dict[str, torch.Tensor], context: TrainContext) -> torch.Tensor:
    """Compute the mean squared error of the noise at a random time; independent of the number of workers."""
    return _errors(model, batch, context).mean()


def metrics(model: nn.Module, batch: dict[str, torch.Tensor], context: TrainContext) -> dict[str, object]:
    """Compute the two-sample accuracy of the batch and as many generated pictures of its classes."""
    generated = _generate(model, batch["label"][:, 0], context)
    correct = two_sample_accuracy(_flat(generated), _flat(_pictures(batch)))
    return {"two_sample_accuracy": (correct.sum(), len(correct))}


def predict(model: nn.Module, batch: dict[str, torch.Tensor], context: TrainContext) -> dict[str, object]:
    """Return a generated picture for each label."""
    generated = ((_generate(model, batch["label"][:, 0], context) + 1) * 127.5).clamp(0, 255).byte()
    large = generated.repeat_interleave(_SCALE, 2).repeat_interleave(_SCALE, 3)
    return {"image": large[:, 0], "label": context.names(batch["label"][:, 0])}


def outcomes(model: nn.Module, batch: dict[str, torch.Tensor], context: TrainContext) -> dict[str, object]:
    """Return the error of each picture's noise, by class."""
    errors = _errors(model, batch, context)
    return {"error": errors, "slice": context.names(batch["label"][:, 0])}


def assess(model: nn.Module, splits: Splits) -> dict[str, float]:
    """Compute the two-sample accuracy on more pictures."""
    real = {name: torch.from_numpy(np.asarray(values)[:_ASSESSED]) for name, values in splits.evaluation.items()}
    context = TrainContext(0, 1, False, 0, 1, 0, torch.arange(len(real["image"])))
    with torch.no_grad():
        generated = _generate(model, real["label"][:, 0], context)
    return {"two_sample_accuracy": float(two_sample_accuracy(_flat(generated), _flat(_pictures(real))).float().mean())}


def _errors(model: nn.Module, batch: dict[str, torch.Tensor], context: TrainContext) -> torch.Tensor:
    pictures, noise = _pictures(batch), context.normal(1, _SIDE, _SIDE)
    time = context.uniform()
    signal, spread = _levels(time)
    predicted = model(signal * pictures + spread * noise, time, batch["label"][:, 0])
    return (predicted - noise).square().mean((1, 2, 3))


def _generate(model: nn.Module, classes: torch.Tensor, context: TrainContext) -> torch.Tensor:
    """Generate pictures in -1 to 1 by deterministic steps from noise (Song et al. 2021)."""
    x = context.normal(1, _SIDE, _SIDE)
    times = torch.linspace(1, 0, _STEPS + 1, device=x.device)
    for now, then in pairwise(times):
        signal, spread = _levels(now.expand(len(x)))
        noise = model(x, now.expand(len(x)), classes)
        picture = ((x - spread * noise) / signal).clamp(-1, 1)
        noise = (x - signal * picture) / spread
        signal, spread = _levels(then.expand(len(x)))
        x = signal * picture + spread * noise
    return x


def _levels(time: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the shares of picture and noise at a time from 0 to 1 (Nichol and Dhariwal 2021)."""
    angle = (time * 0.98 + 0.01)[:, None, None, None] * math.pi / 2
    return angle.cos(), angle.sin()


def _pictures(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return batch["image"].permute(0, 3, 1, 2).float() / 127.5 - 1


def _flat(pictures: torch.Tensor) -> torch.Tensor:
    return pictures.flatten(1)
