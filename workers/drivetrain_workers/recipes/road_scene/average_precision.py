"""How well lights are found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from data import CLASSES

_RIGHT_FROM = 0.5  # of the overlap


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of boxes ``(left, top, width, height)``."""
    across = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    down = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    common = max(0.0, across) * max(0.0, down)
    return common / (one[2] * one[3] + other[2] * other[3] - common)


def mean_average_precision(found: Sequence[Sequence[Sequence[float]]], boxes: Any) -> dict[str, float]:
    """Average precision of each class, and their mean, at an overlap of a half (Everingham et al. 2010).

    Args:
        found: of each scene ``(class, score, left, top, width, height)``.
        boxes: of each scene ``[3, 5]``, as the reader gives them.
    """
    values = {f"ap_{name}": _average_precision(number, found, boxes) for number, name in enumerate(CLASSES)}
    return {"map": float(np.mean(list(values.values()))), **values}


def _average_precision(number: int, found: Sequence[Sequence[Sequence[float]]], boxes: Any) -> float:
    wanted = [[box[1:] for box in scene if box[0] == number + 1] for scene in boxes]
    told = sorted(
        ((score, scene, box) for scene, own in enumerate(found) for kind, score, *box in own if kind == number),
        key=lambda each: -each[0],
    )
    taken = [[False] * len(own) for own in wanted]
    right = np.zeros(len(told))
    for place, (_, scene, box) in enumerate(told):
        shares = [overlap(box, other) for other in wanted[scene]]
        best = int(np.argmax(shares)) if shares else -1
        if best >= 0 and shares[best] >= _RIGHT_FROM and not taken[scene][best]:
            taken[scene][best], right[place] = True, 1
    recall = np.cumsum(right) / max(1, sum(map(len, wanted)))
    precision = np.maximum.accumulate((np.cumsum(right) / np.arange(1, len(told) + 1))[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0) * precision))
