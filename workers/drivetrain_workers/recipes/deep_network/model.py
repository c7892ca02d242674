"""A residual network of any depth (He et al. 2016). Each block starts as the identity, so that depth does no harm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

_GROUPS, _SIDE = 8, 7


class Block(nn.Module):
    """Two convolutions with a residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.GroupNorm(_GROUPS, width), nn.GroupNorm(_GROUPS, width)
        self.conv_1 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.conv_2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        nn.init.zeros_(self.conv_2.weight)  # so that every block starts as the identity (Goyal et al. 2017)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[rows, width, height, width]`` to the same shape."""
        return x + self.conv_2(F.relu(self.norm_2(self.conv_1(F.relu(self.norm_1(x))))))


class DeepNetwork(nn.Module):
    """Images uint8 ``[rows, 28, 28, 1]`` to logits ``[rows, classes]``, by ``2 * blocks + 2`` layers with weights."""

    def __init__(self, classes: int, blocks: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 4, 4)  # to 7 x 7: the following layers are many, so they must be small
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.norm = nn.GroupNorm(_GROUPS, width)
        self.head = nn.Linear(_SIDE * _SIDE * width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute logits."""
        x = self.blocks(self.stem(images.permute(0, 3, 1, 2).float() / 127.5 - 1))
        return self.head(F.relu(self.norm(x)).flatten(1))


def deep(classes: int, blocks: int, width: int) -> DeepNetwork:
    """Build the network; ``classes`` comes from the data."""
    return DeepNetwork(classes, blocks, width)
