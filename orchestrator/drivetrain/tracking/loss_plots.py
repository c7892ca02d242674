"""Plots of the loss over steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drivetrain.tracking.totals import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SERIES = (("train", "loss", {"linewidth": 1.0}), ("eval", "eval_loss", {"marker": "o", "markersize": 4}))


def draw_loss(records: Iterable[Record], unigram_entropy: float | None, title: str, path: Path) -> None:
    """Plot train and eval loss over steps as a PNG, with the unigram entropy as the baseline."""
    figure = _figure()
    axes = figure.add_subplot()
    _plot(axes, records, "{series} loss")
    if unigram_entropy is not None:
        axes.axhline(unigram_entropy, linestyle="--", color="gray", label="unigram entropy")
    axes.set(xlabel="step", ylabel="nats per token" if unigram_entropy is not None else "loss", title=title)
    _finish(figure, axes, path)


def draw_losses(runs: Mapping[str, Iterable[Record]], path: Path) -> None:
    """Plot the losses of several runs in one PNG."""
    figure = _figure()
    axes = figure.add_subplot()
    for name, records in runs.items():
        _plot(axes, records, f"{name}: {{series}} loss")
    axes.set(xlabel="step", ylabel="loss")
    _finish(figure, axes, path)


def _figure() -> Figure:
    """Return an empty figure."""
    from matplotlib.figure import Figure  # here: it takes 0.4 s to import, which every start of a run would wait for

    return Figure(figsize=(8, 4.5), dpi=120, layout="constrained")


def _plot(axes: Any, records: Iterable[Record], label: str) -> None:
    """Plot the series of metric records, which are read once, since there may be many."""
    keys = {series: key for series, key, _ in _SERIES}
    points: dict[str, list[tuple[int, float]]] = {series: [] for series in keys}
    for record in records:
        key = keys.get(record["series"])
        if key in record["values"]:
            points[record["series"]].append((record["step"], record["values"][key]))
    for series, _, style in _SERIES:
        if points[series]:
            axes.plot(*zip(*points[series], strict=True), label=label.format(series=series), **style)


def _finish(figure: Figure, axes: Any, path: Path) -> None:
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:  # an empty legend makes matplotlib print a warning
        axes.legend()
    figure.savefig(path)
