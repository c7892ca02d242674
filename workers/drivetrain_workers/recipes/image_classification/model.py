"""A small residual network (He et al. 2016), with group norm (Wu and He 2018), which keeps the rows independent."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from drivetrain_workers.modeling.context import TrainContext
from torch import nn

_GROUPS = 8
_SHIFT = 3  # maximum shift in pixels during training


class Residual(nn.Module):
    """Two convolutions with a residual connection."""

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.GroupNorm(_GROUPS, in_width), nn.GroupNorm(_GROUPS, width)
        self.conv_1 = nn.Conv2d(in_width, width, 3, stride, 1, bias=False)
        self.conv_2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.shortcut = nn.Identity() if in_width == width else nn.Conv2d(in_width, width, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[rows, in_width, height, width]`` to ``[rows, width, height / stride, width / stride]``."""
        y = self.conv_1(F.relu(self.norm_1(x)))
        return self.shortcut(x) + self.conv_2(F.relu(self.norm_2(y)))


class ResNet(nn.Module):
    """Images uint8 ``[rows, height, width, 3]`` to logits ``[rows, classes]``."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 5, 2, 2, bias=False)  # a quarter of the positions, a quarter of the work
        self.blocks = nn.Sequential(
            Residual(width, width, 1), Residual(width, 2 * width, 2), Residual(2 * width, 4 * width, 2)
        )
        self.norm = nn.GroupNorm(_GROUPS, 4 * width)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute logits."""
        x = self.stem(images.permute(0, 3, 1, 2).float() / 127.5 - 1)
        return self.head(F.relu(self.norm(self.blocks(x))).mean((2, 3)))


def resnet(classes: int, width: int = 16) -> ResNet:
    """Build the network; ``classes`` comes from the data."""
    return ResNet(classes, width)


def loss(model: nn.Module, batch: dict[str, torch.Tensor], context: TrainContext) -> torch.Tensor:
    """Compute the mean cross-entropy; during training, of pictures that are randomly mirrored and shifted."""
    images = _augment(batch["image"], context) if context.training else batch["image"]
    return F.cross_entropy(model(images), batch["label"][:, 0])


def _augment(images: torch.Tensor, context: TrainContext) -> torch.Tensor:
    draws = context.uniform(3)
    mirrored = torch.where(draws[:, 0, None, None, None] < 0.5, images.flip(2), images)
    moves = (draws[:, 1:] * (2 * _SHIFT + 1)).long() - _SHIFT
    side = torch.arange(images.shape[1], device=images.device)
    rows = (side + moves[:, :1]).clamp(0, images.shape[1] - 1)
    columns = (side + moves[:, 1:]).clamp(0, images.shape[2] - 1)
    every = torch.arange(len(images), device=images.device)[:, None, None]
    return mirrored[every, rows[:, :, None], columns[:, None, :]]
