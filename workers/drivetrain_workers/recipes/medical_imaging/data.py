"""A patch around every cell nucleus of a section, labelled as tumour or not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import center_of_mass, maximum

_SIDE = 48  # pixels of a patch
_BLOCK = 250  # pixels; patches of one block get the same split, because neighbours look alike
_TUMOUR = 3  # value of neoplastic nuclei in the mask of kinds


def nuclei(path: Path, nuclei: Path, kinds: Path) -> Iterator[dict[str, object]]:
    """Yield the patches of the section that the masks belong to; any other picture is used as one patch."""
    if path.stem != nuclei.stem.removesuffix("_inst_mask"):
        yield {"file": path.name, "bytes": path.read_bytes(), "block": "", "label": 0}
        return
    with Image.open(path) as picture:
        section = np.asarray(picture.convert("RGB"))
    numbers, kind = np.load(nuclei)["nuc_raster"], np.load(kinds)["nuc_raster"]
    known = np.unique(numbers[numbers > 0])
    for number, (y, x), own in zip(
        known, center_of_mass(numbers > 0, numbers, known), maximum(kind, numbers, known), strict=True
    ):
        top, left = round(y) - _SIDE // 2, round(x) - _SIDE // 2
        patch = section[max(0, top) : top + _SIDE, max(0, left) : left + _SIDE]
        if patch.shape[:2] == (_SIDE, _SIDE):  # patches at the edge of the section are left out
            yield {
                "file": f"{path.name}:{number}",
                "image": patch,
                "block": f"{int(y) // _BLOCK}-{int(x) // _BLOCK}",
                "label": int(own == _TUMOUR),
            }
