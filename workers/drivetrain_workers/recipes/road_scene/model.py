"""A detector in one pass (Redmon et al. 2016): each cell of a grid tells whether a light is centred in it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from average_precision import mean_average_precision, overlap
from data import CLASSES
from drivetrain_workers.assessment.judging import batches
from drivetrain_workers.assessment.splits import Splits
from drivetrain_workers.modeling.context import TrainContext
from torch import nn

_ROWS, _COLUMNS = 12, 16  # of the grid; cells of 8 x 8 pixels
_SURE, _OVERLAP = 0.05, 0.3  # of the lights that are told, and how much of two may be the same
_BOX_WEIGHT = 5.0  # of the places in the loss
_SHOWN = 2  # times the size, for people to look at
_COLOURS = ((255, 40, 40), (255, 220, 0), (40, 255, 90))


class Detector(nn.Module):
    """Scenes uint8 ``[rows, 96, 128, 3]`` to ``[rows, 12, 16, 1 + classes + 4]``: logits, and where in the cell."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for given, made in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [nn.Conv2d(given, made, 3, padding=1), nn.GroupNorm(8, made), nn.ReLU(), nn.MaxPool2d(2)]
        for _ in range(2):
            layers += [nn.Conv2d(4 * width, 4 * width, 3, padding=1), nn.GroupNorm(8, 4 * width), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(4 * width, 1 + len(CLASSES) + 4, 1))

    def forward(self, scenes: torch.Tensor) -> torch.Tensor:
        """What each cell says."""
        return self.layers(scenes.permute(0, 3, 1, 2).float() / 127.5 - 1).permute(0, 2, 3, 1)


def detector(width: int = 16) -> Detector:
    """Build one."""
    return Detector(width)


def loss(model: nn.Module, batch: dict[str, torch.Tensor], context: TrainContext) -> torch.Tensor:
    """Cross-entropy of what is in each cell, and the distance of places; a mean over scenes."""
    del context
    said, (kinds, places) = model(batch["image"]), _wanted(batch["boxes"])
    logits, boxes = said[..., : 1 + len(CLASSES)], said[..., 1 + len(CLASSES) :]
    there = kinds > 0
    of_kinds = F.cross_entropy(logits.flatten(0, 2), kinds.flatten(), reduction="sum")
    of_places = F.smooth_l1_loss(boxes[there], places[there], reduction="sum", beta=0.1)
    return (of_kinds + _BOX_WEIGHT * of_places) / len(kinds)


def metrics(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, object]:
    """Of the lights, how many are seen and told right; of what is told, how much is right."""
    kinds, _ = _wanted(batch["boxes"])
    told = model(batch["image"])[..., : 1 + len(CLASSES)].argmax(-1)
    right = ((told == kinds) & (kinds > 0)).sum()
    return {"recall": (right, (kinds > 0).sum()), "precision": (right, (told > 0).sum())}


def outcomes(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, object]:
    """A decision for each cell: nothing, or a kind of light."""
    kinds, _ = _wanted(batch["boxes"])
    probabilities = model(batch["image"])[..., : 1 + len(CLASSES)].softmax(-1).flatten(1, 2)
    names = [["street", *CLASSES][kind] for kind in kinds.flatten().tolist()]
    rows = len(kinds)
    slices = [names[row * _ROWS * _COLUMNS : (row + 1) * _ROWS * _COLUMNS] for row in range(rows)]
    seen = 1 - probabilities[..., 0]
    return {"probabilities": probabilities, "targets": kinds.flatten(1), "slice": slices, "score": seen.amax(1)}


def predict(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, object]:
    """The lights of each scene, and the scene with boxes around them."""
    found = detections(model(batch["image"]))
    shown = torch.stack([_drawn(scene, boxes) for scene, boxes in zip(batch["image"], found, strict=True)])
    lights = [[f"{CLASSES[int(kind)]} {score:.2f}" for kind, score, *_ in boxes if score > 0.5] for boxes in found]
    return {"scene": shown, "lights": lights}


def assess(model: nn.Module, splits: Splits) -> dict[str, float]:
    """Mean average precision."""
    with torch.no_grad():
        found = [boxes for batch in batches(splits.evaluation) for boxes in detections(model(batch["image"]))]
    return mean_average_precision(found, splits.evaluation["boxes"])


def detections(said: torch.Tensor) -> list[list[tuple[float, ...]]]:
    """``(class, score, left, top, width, height)`` of each scene's lights, the surest first, none twice."""
    probabilities = said[..., : 1 + len(CLASSES)].softmax(-1)
    score, kind = probabilities[..., 1:].max(-1)
    row, column = torch.meshgrid(
        torch.arange(_ROWS, device=said.device), torch.arange(_COLUMNS, device=said.device), indexing="ij"
    )
    x = (column + said[..., -4]) / _COLUMNS
    y = (row + said[..., -3]) / _ROWS
    width, height = said[..., -2].exp() / _COLUMNS, said[..., -1].exp() / _ROWS
    table = torch.stack([kind.float(), score, x - width / 2, y - height / 2, width, height], -1).flatten(1, 2)
    return [_distinct(rows[rows[:, 1] > _SURE].tolist()) for rows in table]


def _wanted(boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What each cell should say: 0 or a class plus one, int64 ``[rows, 12, 16]``, and the place in it ``[..., 4]``."""
    rows = len(boxes)
    kinds = torch.zeros(rows, _ROWS, _COLUMNS, dtype=torch.long, device=boxes.device)
    places = torch.zeros(rows, _ROWS, _COLUMNS, 4, device=boxes.device)
    kind, left, top, width, height = boxes.unbind(-1)
    x, y = (left + width / 2) * _COLUMNS, (top + height / 2) * _ROWS
    scene, number = (kind > 0).nonzero(as_tuple=True)
    x, y = x[scene, number], y[scene, number]
    row, column = y.long().clamp(0, _ROWS - 1), x.long().clamp(0, _COLUMNS - 1)
    kinds[scene, row, column] = kind[scene, number].long()
    sizes = (width[scene, number] * _COLUMNS).log(), (height[scene, number] * _ROWS).log()
    places[scene, row, column] = torch.stack([x - column, y - row, *sizes], -1)
    return kinds, places


def _distinct(boxes: list[list[float]]) -> list[tuple[float, ...]]:
    """Without those that overlap a surer one too much."""
    kept: list[tuple[float, ...]] = []
    for box in sorted(boxes, key=lambda each: -each[1]):
        if all(overlap(box[2:], other[2:]) < _OVERLAP for other in kept):
            kept.append(tuple(box))
    return kept


def _drawn(scene: torch.Tensor, boxes: list[tuple[float, ...]]) -> torch.Tensor:
    large = scene.byte().repeat_interleave(_SHOWN, 0).repeat_interleave(_SHOWN, 1)
    height, width = large.shape[:2]
    for kind, score, *box in boxes:
        if score <= 0.5:
            continue
        left, top = max(0, int(box[0] * width)), max(0, int(box[1] * height))
        right, bottom = min(width - 1, int((box[0] + box[2]) * width)), min(height - 1, int((box[1] + box[3]) * height))
        colour = torch.tensor(_COLOURS[int(kind)], dtype=torch.uint8, device=scene.device)
        large[top, left : right + 1] = large[bottom, left : right + 1] = colour
        large[top : bottom + 1, left] = large[top : bottom + 1, right] = colour
    return large
