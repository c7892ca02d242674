"""Faces, turned and scaled so that the eyes of all are in the same places."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

_SIDE = 112
_LEFT_EYE, _RIGHT_EYE = (38.3, 51.7), (73.5, 51.5)  # where the network expects them
_DIGITS = 5  # of a file's name are the number of the person


def faces(path: Path) -> Iterator[dict[str, object]]:
    """The faces that a list ``NAME X Y X Y`` tells the eyes of; of a picture, that face.

    A picture that such a list beside it does not name is taken for a face that has been cut out already.
    """
    if path.suffix == ".txt":
        for name, eyes in _eyes(path).items():
            yield _face(path.with_name(f"{name}.pgm"), eyes)
        return
    beside = path.with_name("coords.txt")
    yield _face(path, _eyes(beside).get(path.stem) if beside.is_file() else None)


def _eyes(path: Path) -> dict[str, list[float]]:
    lines = (line.split() for line in path.read_text().splitlines() if line.strip())
    return {name: [float(number) for number in numbers] for name, *numbers in lines}


def _face(path: Path, eyes: list[float] | None) -> dict[str, object]:
    with Image.open(path) as picture:
        image = picture.convert("RGB")
    if eyes:
        image = _aligned(image, *eyes)
    person = path.stem[:_DIGITS]
    return {"file": path.name, "image": np.asarray(image), "person": person, "label": int(person) if eyes else 0}


def _aligned(image: Image.Image, left_x: float, left_y: float, right_x: float, right_y: float) -> Image.Image:
    """The similarity that moves the eyes to their places, as Pillow wants it: from the new picture to the old one."""
    wanted = complex(*_RIGHT_EYE) - complex(*_LEFT_EYE)
    turn = (complex(right_x, right_y) - complex(left_x, left_y)) / wanted
    shift = complex(left_x, left_y) - turn * complex(*_LEFT_EYE)
    if not math.isfinite(abs(turn)) or turn == 0:
        raise ValueError("both eyes are in the same place")
    matrix = (turn.real, -turn.imag, shift.real, turn.imag, turn.real, shift.imag)
    return image.transform((_SIDE, _SIDE), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
