"""Faces, rotated and scaled so that the eyes are at the same positions in all pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

_SIDE = 112
_LEFT_EYE, _RIGHT_EYE = (38.3, 51.7), (73.5, 51.5)  # positions that the network expects
_DIGITS = 5  # the first characters of a file name are the number of the person


def faces(path: Path) -> Iterator[dict[str, object]]:
    """Yield the faces of a list with lines ``NAME X Y X Y`` (positions of the eyes), or the face of one picture.

    A picture without an entry in the list of its folder is used as an already aligned face.
    """
    if path.suffix == ".txt":
        for name, eyes in _eyes(path).items():
            yield _face(path.with_name(f"{name}.pgm"), eyes)
        return
    listing = path.with_name("coords.txt")
    yield _face(path, _eyes(listing).get(path.stem) if listing.is_file() else None)


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
    """Rotate, scale and shift a picture so that its eyes are at the expected positions."""
    expected = complex(*_RIGHT_EYE) - complex(*_LEFT_EYE)
    rotation = (complex(right_x, right_y) - complex(left_x, left_y)) / expected
    shift = complex(left_x, left_y) - rotation * complex(*_LEFT_EYE)
    if not math.isfinite(abs(rotation)) or rotation == 0:
        raise ValueError("both eyes are in the same place")
    matrix = (rotation.real, -rotation.imag, shift.real, rotation.imag, rotation.real, shift.imag)
    return image.transform((_SIDE, _SIDE), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
