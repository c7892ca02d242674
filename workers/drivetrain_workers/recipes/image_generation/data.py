"""Fashion-MNIST's pictures of clothes, from its IDX files."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_HEADER, _LABEL_HEADER = 16, 8  # bytes before the data
_SIDE = 28


def clothes(path: Path) -> Iterator[dict[str, object]]:
    """Yield the pictures of ``...-images-idx3-ubyte.gz`` with their labels; of any other file, the picture itself."""
    if not path.name.endswith("-images-idx3-ubyte.gz"):
        yield {"file": path.name, "bytes": path.read_bytes(), "label": 0}
        return
    pictures = _numbers(path)[_HEADER:].reshape(-1, _SIDE, _SIDE)
    labels = _numbers(path.with_name(path.name.replace("images-idx3", "labels-idx1")))[_LABEL_HEADER:]
    for number, (pixels, label) in enumerate(zip(pictures, labels, strict=True)):
        yield {"file": f"{path.name}:{number}", "image": pixels, "label": int(label)}


def _numbers(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8)
