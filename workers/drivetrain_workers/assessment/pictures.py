"""Figures of an assessment: confidence against accuracy, and attributions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.figure import Figure

from drivetrain_workers.assessment.scores import Outcomes, calibration_error, reliability

Array = npt.NDArray[Any]
_NEGATIVE, _POSITIVE = "#c2185b", "#1565c0"
_LINE_CHARACTERS, _LINES = 122, 4  # that fit next to each other at this size, for each text


def draw_reliability(found: Outcomes, target: Path) -> Path:
    """Draw accuracy over confidence (Niculescu-Mizil and Caruana 2005); the size of a dot is its share."""
    figure = Figure(figsize=(4.4, 4.2), layout="constrained")
    axes = figure.subplots()
    confidence, accuracy, counts = (np.array(values) for values in zip(*reliability(found), strict=True))
    axes.plot([0, 1], [0, 1], color="#b0bac5", linewidth=1)
    axes.plot(confidence, accuracy, color=_POSITIVE, linewidth=1)
    axes.scatter(confidence, accuracy, s=8 + 300 * counts / counts.sum(), color=_POSITIVE, alpha=0.7)
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02), aspect="equal")
    axes.set_title(f"calibration error {calibration_error(found):.3f}", loc="left", fontsize=10)
    return _save(figure, target)


def draw_images(images: Array, attributions: Array, target: Path) -> Path:
    """Draw inputs ``[rows, height, width(, channels)]`` above the attribution of each part, positive or negative."""
    rows = len(images)
    figure = Figure(figsize=(1.9 * rows, 3.9), layout="constrained")
    grid = figure.subplots(2, rows, squeeze=False)
    for number, (image, own) in enumerate(zip(images, attributions, strict=True)):
        above, below = grid[:, number]
        recording = image.ndim == 2  # frames by mels: time goes to the right
        shown = image.T[::-1] if recording else image if image.shape[-1] == 3 else image[..., 0]
        above.imshow(shown, cmap=None if shown.ndim == 3 else "gray", aspect="auto" if recording else "equal")
        flat = own.T[::-1] if recording else own.sum(-1)
        largest = np.abs(flat).max() or 1.0
        below.imshow(flat, cmap="RdBu", vmin=-largest, vmax=largest, aspect="auto" if recording else "equal")
        for axes in (above, below):
            axes.set_axis_off()
    return _save(figure, target, "blue supports the decision, red opposes it")


def draw_tokens(texts: list[list[str]], attributions: list[Array], target: Path) -> Path:
    """Draw tokens, each on the colour of its attribution."""
    placed: list[tuple[int, int, str, float]] = []  # line, column, token, strength
    line = -1
    for tokens, own in zip(texts, attributions, strict=True):
        line, column, last = line + 1, 0, line + _LINES
        largest = np.abs(own).max() or 1.0
        for token, strength in zip(tokens, own / largest, strict=True):
            if column + len(token) > _LINE_CHARACTERS:
                line, column = line + 1, 0
            if line > last:
                break
            placed.append((line, column, token, float(strength)))
            column += len(token)
        line = min(line, last)
    figure = Figure(figsize=(9, 0.26 * (line + 1) + 0.35), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, _LINE_CHARACTERS), ylim=(line + 1, 0))
    axes.set_axis_off()
    for row, column, token, strength in placed:
        text = token.replace("\n", " ").replace("$", r"\$")
        box = {"facecolor": colormaps["RdBu"](0.5 + 0.35 * strength), "edgecolor": "none", "pad": 1}
        axes.text(column, row + 0.5, text, family="monospace", fontsize=8.5, va="center", bbox=box)
    return _save(figure, target, "blue supports the decision, red opposes it")


def draw_bars(names: list[str], attributions: Array, target: Path) -> Path:
    """Draw the attributions of the columns of a table ``[rows, names]``, averaged over the rows."""
    figure = Figure(figsize=(6, 0.3 * len(names) + 0.9), layout="constrained")
    axes = figure.subplots()
    mean = attributions.mean(axis=0)
    axes.barh(names, mean, color=np.where(mean < 0, _NEGATIVE, _POSITIVE))
    axes.invert_yaxis()
    return _save(figure, target, "mean attribution")


def _save(figure: Figure, target: Path, title: str = "") -> Path:
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=9, color="#4a5765")
    figure.savefig(target, dpi=110)
    return target
