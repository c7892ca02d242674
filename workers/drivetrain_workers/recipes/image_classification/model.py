"""A small residual network (He et al. 2016), with group norm (Wu and He 2018): no row of a batch sees another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from drivetrain_workers.modeling.context import TrainContext
from torch import nn

_GROUPS = 8
_SHIFT = 3  # pixels that a picture is moved by, at most, while training


class Residual(nn.Module):
    """Two convolutions around which the input goes, too."""

    def __init__(self, given: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.GroupNorm(_GROUPS, given), nn.GroupNorm(_GROUPS, width)
        self.conv_1 = nn.Conv2d(given, width, 3, stride, 1, bias=False)
        self.conv_2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.around = nn.Identity() if given == width else nn.Conv2d(given, width, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[rows, given, height, width]`` to ``[rows, width, height / stride, width / stride]``."""
        y = self.conv_1(F.relu(self.norm_1(x)))
        return self.around(x) + self.conv_2(F.relu(self.norm_2(y)))


class ResNet(nn.Module):
    """Images uint8 ``[rows, height, width, 3]`` to logits ``[rows, classes]``."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 5, 2, 2, bias=False)  # a quarter of the places, a quarter of the work
        self.blocks = nn.Sequential(
            Residual(width, width, 1), Residual(width, 2 * width, 2), Residual(2 * width, 4 * width, 2)
        )
        self.norm = nn.GroupNorm(_GROUPS, 4 * width)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = self.stem(images.permute(0, 3, 1, 2).float() / 127.5 - 1)
        return self.head(F.relu(self.norm(self.blocks(x))).mean((2, 3)))


def resnet(classes: int, width: int = 16) -> ResNet:
    """Build one; ``classes`` comes from the data."""
    return ResNet(classes, width)


def loss(model: nn.Module, batch: dict[str, torch.Tensor], context: TrainContext) -> torch.Tensor:
    """Mean cross-entropy; while training, of pictures that are mirrored and moved a little."""
    images = _changed(batch["image"], context) if context.training else batch["image"]
    return F.cross_entropy(model(images), batch["label"][:, 0])


def _changed(images: torch.Tensor, context: TrainContext) -> torch.Tensor:
    draws = context.uniform(3)
    mirrored = torch.where(draws[:, 0, None, None, None] < 0.5, images.flip(2), images)
    moves = (draws[:, 1:] * (2 * _SHIFT + 1)).long() - _SHIFT
    side = torch.arange(images.shape[1], device=images.device)
    rows = (side + moves[:, :1]).clamp(0, images.shape[1] - 1)
    columns = (side + moves[:, 1:]).clamp(0, images.shape[2] - 1)
    every = torch.arange(len(images), device=images.device)[:, None, None]
    return mirrored[every, rows[:, :, None], columns[:, None, :]]
