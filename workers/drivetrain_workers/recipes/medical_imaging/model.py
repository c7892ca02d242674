"""A small convolutional network for patches without a preferred orientation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from drivetrain_workers.modeling.context import TrainContext
from torch import nn

_SMOOTHING = 0.05  # of targets: annotators also make errors
_COLOUR_VARIATION = 0.15  # variation of brightness and of each colour between stains


def network(classes: int, width: int = 24, dropout: float = 0.3) -> nn.Module:
    """Build the network; ``classes`` comes from the data."""
    return Patches(classes, width, dropout)


class Patches(nn.Module):
    """Patches uint8 ``[rows, 48, 48, 3]`` to logits ``[rows, classes]``."""

    def __init__(self, classes: int, width: int, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for in_width, out_width in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [
                nn.Conv2d(in_width, out_width, 3, padding=1),
                nn.GroupNorm(8, out_width),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(8 * width, classes))

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Compute logits from the mean of the features and from the nucleus in the middle."""
        x = self.layers(patches.permute(0, 3, 1, 2).float() / 127.5 - 1)
        middle = x[:, :, 2:4, 2:4]
        return self.head(torch.cat([x.mean((2, 3)), middle.mean((2, 3))], 1))


def loss(model: nn.Module, batch: dict[str, torch.Tensor], context: TrainContext) -> torch.Tensor:
    """Compute the mean cross-entropy; during training, of randomly flipped, transposed and recoloured patches."""
    if not context.training:
        return F.cross_entropy(model(batch["image"]), batch["label"][:, 0])
    patches = _augment(batch["image"], context)
    return F.cross_entropy(model(patches), batch["label"][:, 0], label_smoothing=_SMOOTHING)


def metrics(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, object]:
    """Compute sensitivity (detected tumour nuclei) and specificity (correctly rejected others)."""
    predicted, tumour = model(batch["image"]).argmax(-1) == 1, batch["label"][:, 0] == 1
    return {
        "sensitivity": ((predicted & tumour).sum(), tumour.sum()),
        "specificity": ((~predicted & ~tumour).sum(), (~tumour).sum()),
    }


def outcomes(model: nn.Module, batch: dict[str, torch.Tensor], context: TrainContext) -> dict[str, object]:
    """Return probabilities, sliced by class and by the brightness of the patch."""
    dark = batch["image"].float().mean((1, 2, 3)) < 140
    names = context.names(batch["label"][:, 0])
    slices = [f"{name}, {'dark' if own else 'light'} patch" for name, own in zip(names, dark.tolist(), strict=True)]
    return {"probabilities": model(batch["image"]).softmax(-1), "slice": slices}


def _augment(patches: torch.Tensor, context: TrainContext) -> torch.Tensor:
    draws = context.uniform(3)[:, :, None, None, None]
    x = torch.where(draws[:, 0] < 0.5, patches.flip(1), patches)
    x = torch.where(draws[:, 1] < 0.5, x.flip(2), x)
    x = torch.where(draws[:, 2] < 0.5, x.transpose(1, 2), x)
    light = 1 + _COLOUR_VARIATION * (2 * context.uniform(1, 1, 3) - 1)
    return (x.float() * light).clamp(0, 255)
