"""Average precision of detected lights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from data import CLASSES

_MIN_OVERLAP = 0.5  # minimum overlap of a correct detection


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Compute the intersection over union of boxes ``(left, top, width, height)``."""
    across = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    down = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    common = max(0.0, across) * max(0.0, down)
    return common / (one[2] * one[3] + other[2] * other[3] - common)


def mean_average_precision(found: Sequence[Sequence[Sequence[float]]], boxes: Any) -> dict[str, float]:
    """Compute the average precision of each class, and their mean, at an overlap of 0.5 (Everingham et al. 2010).

    Args:
        found: ``(class, score, left, top, width, height)`` for each scene.
        boxes: ``[3, 5]`` for each scene, as the reader returns them.
    """
    values = {f"ap_{name}": _average_precision(number, found, boxes) for number, name in enumerate(CLASSES)}
    return {"map": float(np.mean(list(values.values()))), **values}


def _average_precision(number: int, found: Sequence[Sequence[Sequence[float]]], boxes: Any) -> float:
    targets = [[box[1:] for box in scene if box[0] == number + 1] for scene in boxes]
    predicted = sorted(
        ((score, scene, box) for scene, own in enumerate(found) for kind, score, *box in own if kind == number),
        key=lambda each: -each[0],
    )
    matched = [[False] * len(own) for own in targets]
    correct = np.zeros(len(predicted))
    for rank, (_, scene, box) in enumerate(predicted):
        shares = [overlap(box, other) for other in targets[scene]]
        best = int(np.argmax(shares)) if shares else -1
        if best >= 0 and shares[best] >= _MIN_OVERLAP and not matched[scene][best]:
            matched[scene][best], correct[rank] = True, 1
    recall = np.cumsum(correct) / max(1, sum(map(len, targets)))
    precision = np.maximum.accumulate((np.cumsum(correct) / np.arange(1, len(predicted) + 1))[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0) * precision))
