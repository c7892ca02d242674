"""A single-pass detector (Redmon et al. 2016): each cell of a grid predicts whether a light is centred in it."""

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
_MIN_SCORE, _MAX_OVERLAP = 0.05, 0.3  # minimum score of a detection, and maximum overlap of two
_BOX_WEIGHT = 5.0  # of the boxes in the loss
_SCALE = 2  # scale factor of the output
_COLOURS = ((255, 40, 40), (255, 220, 0), (40, 255, 90))


class Detector(nn.Module):
    """Scenes uint8 ``[rows, 96, 128, 3]`` to ``[rows, 12, 16, 1 + classes + 4]``: logits, and the box in the cell."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for in_width, out_width in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [
                nn.Conv2d(in_width, out_width, 3, padding=1),
                nn.GroupNorm(8, out_width),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        for _ in range(2):
            layers += [nn.Conv2d(4 * width, 4 * width, 3, padding=1), nn.GroupNorm(8, 4 * width), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(4 * width, 1 + len(CLASSES) + 4, 1))

    def forward(self, scenes: torch.Tensor) -> torch.Tensor:
        """Compute the prediction of each cell."""
        return self.layers(scenes.permute(0, 3, 1, 2).float() / 127.5 - 1).permute(0, 2, 3, 1)


def detector(width: int = 16) -> Detector:
    """Build the network."""
    return Detector(width)


def loss(model: nn.Module, batch: dict[str, torch.Tensor], context: TrainContext) -> torch.Tensor:
    """Compute the cross-entropy of the cells' classes plus the distance of boxes; a mean over scenes."""
    del context
    output, (kinds, cell_boxes) = model(batch["image"]), _targets(batch["boxes"])
    logits, boxes = output[..., : 1 + len(CLASSES)], output[..., 1 + len(CLASSES) :]
    occupied = kinds > 0
    class_loss = F.cross_entropy(logits.flatten(0, 2), kinds.flatten(), reduction="sum")
    box_loss = F.smooth_l1_loss(boxes[occupied], cell_boxes[occupied], reduction="sum", beta=0.1)
    return (class_loss + _BOX_WEIGHT * box_loss) / len(kinds)


def metrics(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, object]:
    """Compute recall (correctly detected lights) and precision (correct detections)."""
    kinds, _ = _targets(batch["boxes"])
    predicted = model(batch["image"])[..., : 1 + len(CLASSES)].argmax(-1)
    right = ((predicted == kinds) & (kinds > 0)).sum()
    return {"recall": (right, (kinds > 0).sum()), "precision": (right, (predicted > 0).sum())}


def outcomes(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, object]:
    """Return a decision for each cell: no light, or a class of light."""
    kinds, _ = _targets(batch["boxes"])
    probabilities = model(batch["image"])[..., : 1 + len(CLASSES)].softmax(-1).flatten(1, 2)
    names = [["street", *CLASSES][kind] for kind in kinds.flatten().tolist()]
    rows = len(kinds)
    slices = [names[row * _ROWS * _COLUMNS : (row + 1) * _ROWS * _COLUMNS] for row in range(rows)]
    seen = 1 - probabilities[..., 0]
    return {"probabilities": probabilities, "targets": kinds.flatten(1), "slice": slices, "score": seen.amax(1)}


def predict(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, object]:
    """Return the lights of each scene, and the scene with boxes around them."""
    found = detections(model(batch["image"]))
    shown = torch.stack([_draw(scene, boxes) for scene, boxes in zip(batch["image"], found, strict=True)])
    lights = [[f"{CLASSES[int(kind)]} {score:.2f}" for kind, score, *_ in boxes if score > 0.5] for boxes in found]
    return {"scene": shown, "lights": lights}


def assess(model: nn.Module, splits: Splits) -> dict[str, float]:
    """Compute the mean average precision."""
    with torch.no_grad():
        found = [boxes for batch in batches(splits.evaluation) for boxes in detections(model(batch["image"]))]
    return mean_average_precision(found, splits.evaluation["boxes"])


def detections(output: torch.Tensor) -> list[list[tuple[float, ...]]]:
    """Return ``(class, score, left, top, width, height)`` of each scene's lights, highest score first."""
    probabilities = output[..., : 1 + len(CLASSES)].softmax(-1)
    score, kind = probabilities[..., 1:].max(-1)
    row, column = torch.meshgrid(
        torch.arange(_ROWS, device=output.device), torch.arange(_COLUMNS, device=output.device), indexing="ij"
    )
    x = (column + output[..., -4]) / _COLUMNS
    y = (row + output[..., -3]) / _ROWS
    width, height = output[..., -2].exp() / _COLUMNS, output[..., -1].exp() / _ROWS
    table = torch.stack([kind.float(), score, x - width / 2, y - height / 2, width, height], -1).flatten(1, 2)
    return [_distinct(rows[rows[:, 1] > _MIN_SCORE].tolist()) for rows in table]


def _targets(boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the targets of cells: 0 or a class plus one, int64 ``[rows, 12, 16]``, and the box ``[..., 4]``."""
    rows = len(boxes)
    kinds = torch.zeros(rows, _ROWS, _COLUMNS, dtype=torch.long, device=boxes.device)
    cell_boxes = torch.zeros(rows, _ROWS, _COLUMNS, 4, device=boxes.device)
    kind, left, top, width, height = boxes.unbind(-1)
    x, y = (left + width / 2) * _COLUMNS, (top + height / 2) * _ROWS
    scene, number = (kind > 0).nonzero(as_tuple=True)
    x, y = x[scene, number], y[scene, number]
    row, column = y.long().clamp(0, _ROWS - 1), x.long().clamp(0, _COLUMNS - 1)
    kinds[scene, row, column] = kind[scene, number].long()
    sizes = (width[scene, number] * _COLUMNS).log(), (height[scene, number] * _ROWS).log()
    cell_boxes[scene, row, column] = torch.stack([x - column, y - row, *sizes], -1)
    return kinds, cell_boxes


def _distinct(boxes: list[list[float]]) -> list[tuple[float, ...]]:
    """Remove boxes that overlap one with a higher score too much (non-maximum suppression)."""
    kept: list[tuple[float, ...]] = []
    for box in sorted(boxes, key=lambda each: -each[1]):
        if all(overlap(box[2:], other[2:]) < _MAX_OVERLAP for other in kept):
            kept.append(tuple(box))
    return kept


def _draw(scene: torch.Tensor, boxes: list[tuple[float, ...]]) -> torch.Tensor:
    large = scene.byte().repeat_interleave(_SCALE, 0).repeat_interleave(_SCALE, 1)
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
