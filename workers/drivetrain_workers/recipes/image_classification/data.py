"""CIFAR-10's cats and dogs, from pictures that contain ten thousand photographs each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

_SIDE = 32
_PHOTOS_PER_FILE = 10_000
_CLASSES = {3: 0, 5: 1}  # numbers of cat and dog in CIFAR-10, and their labels here


def photographs(path: Path) -> Iterator[dict[str, object]]:
    """Yield the cats and dogs of a file with a photograph per row of pixels; of any other file, the picture itself."""
    with Image.open(path) as picture:
        if picture.size != (_SIDE * _SIDE, _PHOTOS_PER_FILE):
            yield {"file": path.name, "bytes": path.read_bytes(), "label": 0}
            return
        rows = np.asarray(picture.convert("RGB")).reshape(-1, _SIDE, _SIDE, 3)
    labels = _labels(path)
    for number, (pixels, label) in enumerate(zip(rows, labels, strict=True)):
        if label in _CLASSES:
            yield {"file": f"{path.name}:{number}", "image": pixels, "label": _CLASSES[label]}


def _labels(path: Path) -> list[int]:
    if path.stem == "test_batch":
        return list(json.loads(path.with_name("test_lables.json").read_text()))
    batch = int(path.stem.rpartition("_")[2]) - 1
    labels = json.loads(path.with_name("train_lables.json").read_text())
    return list(labels[batch * _PHOTOS_PER_FILE : (batch + 1) * _PHOTOS_PER_FILE])
