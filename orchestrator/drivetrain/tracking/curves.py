"""The picture of a run: its loss over the steps."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from drivetrain.tracking.spool import Record


def draw_loss(records: list[Record], unigram_entropy: float | None, title: str, path: Path) -> None:
    """Train and eval loss over steps, with the entropy of single tokens as the line to beat, as a PNG."""
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for series, key, style in (("train", "loss", {"linewidth": 1.0}), ("eval", "eval_loss", {"marker": "o"})):
        points = [(r["step"], r["values"][key]) for r in records if r["series"] == series and key in r["values"]]
        if points:
            axes.plot(*zip(*points, strict=True), label=f"{series} loss", **style)
    if unigram_entropy is not None:
        axes.axhline(unigram_entropy, linestyle="--", color="gray", label="unigram entropy")
    axes.set(xlabel="step", ylabel="nats per token" if unigram_entropy is not None else "loss", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)
