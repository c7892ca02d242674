"""Detection of bright spots in the colour of a light, with a box of the median size around each."""

from __future__ import annotations

import numpy as np
from average_precision import mean_average_precision
from drivetrain_workers.assessment.splits import Splits
from scipy.ndimage import center_of_mass, label, sum_labels

_HUES = {0: (-20, 25), 1: (30, 65), 2: (90, 190)}  # degrees, by class
_MIN_SATURATION, _MIN_VALUE = 0.5, 120  # saturation and value from which a pixel counts as bright
_MIN_PIXELS = 3


def colour_blobs(splits: Splits) -> dict[str, float]:
    """Compute the mean average precision on the eval split."""
    boxes = np.asarray(splits.train["boxes"]).reshape(-1, 5)
    width, height = np.median(boxes[boxes[:, 0] > 0][:, 3:], axis=0)
    found = [_blobs(scene, float(width), float(height)) for scene in np.asarray(splits.evaluation["image"])]
    return mean_average_precision(found, splits.evaluation["boxes"])


def _blobs(scene: np.ndarray, width: float, height: float) -> list[tuple[float, ...]]:
    pixels = scene.astype(np.float32)
    top, low = pixels.max(-1), pixels.min(-1)
    spread = np.maximum(top - low, 1e-3)
    red, green, blue = np.moveaxis(pixels, -1, 0)
    hue = np.where(
        top == red, 60 * (green - blue) / spread, np.where(top == green, 120 + 60 * (blue - red) / spread, 240)
    )
    bright = (spread / np.maximum(top, 1) > _MIN_SATURATION) & (top > _MIN_VALUE)
    found: list[tuple[float, ...]] = []
    for kind, (first, last) in _HUES.items():
        spots, count = label(bright & (hue >= first) & (hue <= last))
        numbers = np.arange(1, count + 1)
        sizes = sum_labels(np.ones_like(spots), spots, numbers)
        for (y, x), size in zip(center_of_mass(spots > 0, spots, numbers), sizes, strict=True):
            if size >= _MIN_PIXELS:
                left, upper = x / scene.shape[1] - width / 2, y / scene.shape[0] - height / 2
                found.append((kind, float(size), left, upper, width, height))
    return found
