"""Predictions of an evaluation as files for users: a table, and a picture for every column of images."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from drivetrain_workers.modeling.objective import Outputs

_GAP = 2  # pixels between pictures


def write_predictions(folder: Path, step: int, columns: Outputs) -> list[Path]:
    """Write ``step-00000100.json`` (a table in MLflow's format) and ``step-00000100-NAME.png``; returns their paths.

    Args:
        columns: by name, a value for every row; uint8 tensors ``[rows, height, width]`` or with 1 or 3 channels at
            the end are images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"step-{step:08d}"
    paths = []
    table: dict[str, list[Any]] = {}
    for column, values in columns.items():
        if is_image(values):
            path = folder / f"{name}-{column}.png"
            Image.fromarray(_tiled(values.cpu().numpy())).save(path)
            paths.append(path)
        else:
            table[column] = values.tolist() if torch.is_tensor(values) else list(values)
    if table:
        path = folder / f"{name}.json"
        rows = list(zip(*table.values(), strict=True))
        path.write_text(json.dumps({"columns": list(table), "data": rows}, default=str, ensure_ascii=False))
        paths.append(path)
    return paths


def is_image(values: Any) -> bool:
    """Check whether a column of predictions contains images."""
    return torch.is_tensor(values) and values.dtype == torch.uint8 and values.dim() >= 3


def save_images(folder: Path, name: str, images: torch.Tensor) -> list[Path]:
    """Write every image to its own file; existing files are not overwritten."""
    folder.mkdir(parents=True, exist_ok=True)
    free = (path for number in itertools.count() if not (path := folder / f"{name}-{number}.png").exists())
    paths = []
    for image in images.cpu().numpy():
        paths.append(next(free))
        Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image).save(paths[-1])
    return paths


def _tiled(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Tile images into one, left to right and top to bottom, about as wide as high."""
    if images.shape[3:] == (1,):
        images = images[..., 0]
    count, height, width = images.shape[:3]
    across = math.ceil(math.sqrt(count * height / width))
    down = -(-count // across)
    pitch = height + _GAP, width + _GAP
    sheet = np.full((down * pitch[0] - _GAP, across * pitch[1] - _GAP, *images.shape[3:]), 255, np.uint8)
    for number, image in enumerate(images):
        top, left = number // across * pitch[0], number % across * pitch[1]
        sheet[top : top + height, left : left + width] = image
    return sheet
