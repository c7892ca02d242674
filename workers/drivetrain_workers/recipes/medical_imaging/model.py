"""A small convolutional network for patches, which look as well from any side."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from drivetrain_workers.modeling.context import TrainContext
from torch import nn

_SMOOTHING = 0.05  # of targets: annotators err, too
_LIGHT = 0.15  # by how much brightness and each colour differ from stain to stain


def network(classes: int, width: int = 24, dropout: float = 0.3) -> nn.Module:
    """Build one; ``classes`` comes from the data."""
    return Patches(classes, width, dropout)


class Patches(nn.Module):
    """Patches uint8 ``[rows, 48, 48, 3]`` to logits ``[rows, classes]``."""

    def __init__(self, classes: int, width: int, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for given, made in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [nn.Conv2d(given, made, 3, padding=1), nn.GroupNorm(8, made), nn.ReLU(), nn.MaxPool2d(2)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(8 * width, classes))

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Logits; the nucleus in the middle counts by itself beside the mean of all."""
        x = self.layers(patches.permute(0, 3, 1, 2).float() / 127.5 - 1)
        middle = x[:, :, 2:4, 2:4]
        return self.head(torch.cat([x.mean((2, 3)), middle.mean((2, 3))], 1))


def loss(model: nn.Module, batch: dict[str, torch.Tensor], context: TrainContext) -> torch.Tensor:
    """Mean cross-entropy; while training, of patches that are turned, mirrored and stained a little otherwise."""
    if not context.training:
        return F.cross_entropy(model(batch["image"]), batch["label"][:, 0])
    patches = _changed(batch["image"], context)
    return F.cross_entropy(model(patches), batch["label"][:, 0], label_smoothing=_SMOOTHING)


def metrics(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, object]:
    """Of tumour nuclei, how many are found; of others, how many are left alone."""
    said, ill = model(batch["image"]).argmax(-1) == 1, batch["label"][:, 0] == 1
    return {"sensitivity": ((said & ill).sum(), ill.sum()), "specificity": ((~said & ~ill).sum(), (~ill).sum())}


def outcomes(model: nn.Module, batch: dict[str, torch.Tensor], context: TrainContext) -> dict[str, object]:
    """Probabilities; sliced by kind and by how dark the patch is."""
    dark = batch["image"].float().mean((1, 2, 3)) < 140
    names = context.names(batch["label"][:, 0])
    slices = [f"{name}, {'dark' if own else 'light'} patch" for name, own in zip(names, dark.tolist(), strict=True)]
    return {"probabilities": model(batch["image"]).softmax(-1), "slice": slices}


def _changed(patches: torch.Tensor, context: TrainContext) -> torch.Tensor:
    draws = context.uniform(3)[:, :, None, None, None]
    x = torch.where(draws[:, 0] < 0.5, patches.flip(1), patches)
    x = torch.where(draws[:, 1] < 0.5, x.flip(2), x)
    x = torch.where(draws[:, 2] < 0.5, x.transpose(1, 2), x)
    light = 1 + _LIGHT * (2 * context.uniform(1, 1, 3) - 1)
    return (x.float() * light).clamp(0, 255)
