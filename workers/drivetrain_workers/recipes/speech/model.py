"""A convolutional network over log-mel energies (Sainath and Parada 2015)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from drivetrain_workers.modeling.context import TrainContext
from torch import nn

_MAX_SHIFT = 8  # maximum shift in frames during training
_NOISE = 0.3  # standard deviation, in nats of energy
_MASKED = 8  # number of masked mels (Park et al. 2019)
_FAST, _SLOW = 18, 28  # frames with sound: thresholds of the slices for short and long words


class Words(nn.Module):
    """Energies float32 ``[rows, frames, mels]`` to logits ``[rows, classes]``."""

    def __init__(self, classes: int, width: int, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for in_width, out_width in ((1, width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [
                nn.Conv2d(in_width, out_width, 3, padding=1),
                nn.GroupNorm(8, out_width),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(8 * width, classes))

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        """Compute logits; recordings are normalized first."""
        mean, spread = mel.mean((1, 2), keepdim=True), mel.std((1, 2), keepdim=True)
        x = self.layers(((mel - mean) / (spread + 1e-3))[:, None])
        return self.head(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))


def network(classes: int, width: int = 16, dropout: float = 0.3) -> Words:
    """Build the network; ``classes`` comes from the data."""
    return Words(classes, width, dropout)


def loss(model: nn.Module, batch: dict[str, torch.Tensor], context: TrainContext) -> torch.Tensor:
    """Compute the mean cross-entropy; during training, of words that are randomly shifted, noisy and partly masked."""
    mel = _augment(batch["mel"], context) if context.training else batch["mel"]
    return F.cross_entropy(model(mel), batch["label"][:, 0])


def outcomes(model: nn.Module, batch: dict[str, torch.Tensor], context: TrainContext) -> dict[str, object]:
    """Return probabilities, sliced by the pace of the word."""
    energy = batch["mel"].mean(2)
    spoken = (energy > energy.amin(1, keepdim=True) + 2).sum(1).tolist()
    pace = ["fast" if frames < _FAST else "slow" if frames > _SLOW else "ordinary" for frames in spoken]
    words = context.names(batch["label"][:, 0])
    slices = [f"{word}, {own}" for word, own in zip(words, pace, strict=True)]
    return {"probabilities": model(batch["mel"]).softmax(-1), "slice": slices}


def _augment(mel: torch.Tensor, context: TrainContext) -> torch.Tensor:
    frames, mels = mel.shape[1:]
    draws = context.uniform(3)
    shift = (draws[:, :1] * (2 * _MAX_SHIFT + 1)).long() - _MAX_SHIFT
    moved = (torch.arange(frames, device=mel.device) - shift) % frames
    x = mel.gather(1, moved[:, :, None].expand(-1, -1, mels))
    x = x + draws[:, 1:2, None] * _NOISE * context.normal(frames, mels)
    hidden = (draws[:, 2:] * (mels - _MASKED)).long()
    number = torch.arange(mels, device=mel.device)
    mask = (number >= hidden) & (number < hidden + _MASKED)
    return torch.where(mask[:, None, :], x.mean((1, 2), keepdim=True), x)
