"""Composed scenes: cut-out photographs of traffic lights in frames of a street camera."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ("red", "yellow", "green")
MAX_LIGHTS = 3  # maximum number of lights in a scene
_WIDTH, _HEIGHT = 128, 96
_PARTS, _SCENES = 20, 140  # groups of lights and frames, so that none is in two; scenes of each group
_MIN_HEIGHT, _MAX_HEIGHT = 14, 34  # pixels of a light
_EVERY = 8  # uses every 8th frame of the video


def scenes(path: Path, lights: Path) -> Iterator[dict[str, object]]:
    """Yield scenes from a video and a folder of lights; of a picture, that picture, without labels.

    ``boxes`` float32 ``[3, 5]``: for each light its class plus one, left, top, width, height relative to the picture;
    zeros for missing lights.
    """
    no_boxes = np.zeros((MAX_LIGHTS, 5), np.float32)
    if path.suffix != ".avi":
        yield {"file": path.name, "bytes": path.read_bytes(), "boxes": no_boxes, "part": ""}
        return
    frames = _frames(path)
    photographs = [sorted(lights.glob(f"dataset_*/{name}/*"), key=lambda file: file.name) for name in CLASSES]
    for part in range(_PARTS):
        random = np.random.default_rng(part)
        own = [files[part::_PARTS] for files in photographs]
        streets = frames[part * len(frames) // _PARTS : (part + 1) * len(frames) // _PARTS]
        for number in range(_SCENES):
            scene = streets[random.integers(len(streets))].copy()
            if random.random() < 0.5:
                scene = scene[:, ::-1].copy()
            boxes = no_boxes.copy()
            for slot in range(random.integers(0, MAX_LIGHTS + 1)):
                kind = int(random.integers(len(CLASSES)))
                with Image.open(own[kind][random.integers(len(own[kind]))]) as light:
                    box = _paste(scene, light.convert("RGB"), boxes[:slot], random)
                boxes[slot] = (kind + 1, *box) if box else 0
            yield {"file": f"{part}-{number}", "image": scene, "boxes": boxes, "part": str(part)}


def _frames(path: Path) -> list[np.ndarray[Any, Any]]:
    import av  # imported here: predictions of pictures do not need it

    with av.open(str(path)) as video:
        chosen = islice(video.decode(video=0), 0, None, _EVERY)
        return [frame.reformat(_WIDTH, _HEIGHT, "rgb24").to_ndarray() for frame in chosen]


def _paste(
    scene: np.ndarray[Any, Any], light: Image.Image, pasted: np.ndarray[Any, Any], random: np.random.Generator
) -> tuple[float, ...] | None:
    """Paste a light into a scene with random brightness; return None where it would cover another light."""
    height = int(random.integers(_MIN_HEIGHT, _MAX_HEIGHT + 1))
    width = max(4, round(height * light.width / light.height))
    left, top = int(random.integers(0, _WIDTH - width)), int(random.integers(0, _HEIGHT - height))
    box = (left / _WIDTH, top / _HEIGHT, width / _WIDTH, height / _HEIGHT)
    if any(_overlap(box, other[1:]) for other in pasted if other[0]):
        return None
    pixels = np.asarray(light.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    bright = pixels * random.uniform(0.7, 1.2)
    scene[top : top + height, left : left + width] = bright.clip(0, 255).astype(np.uint8)
    return box


def _overlap(one: Any, other: Any) -> bool:
    return bool(
        one[0] < other[0] + other[2]
        and other[0] < one[0] + one[2]
        and one[1] < other[1] + other[3]
        and other[1] < one[1] + one[3]
    )
