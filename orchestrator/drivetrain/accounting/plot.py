"""Plot of the time of a run by class."""

from __future__ import annotations

from pathlib import Path

from drivetrain.accounting.goodput import CLASSES, Timeline

_SLICES = 300
_UNITS = (("seconds", 1.0), ("minutes", 60.0), ("hours", 3600.0))
_COLORS = {
    "queued": "#d9d9d9",
    "provisioning": "#bdbdbd",
    "preparing": "#c7b8e6",
    "starting": "#9e9ac8",
    "computing": "#2a9d5c",
    "waiting for data": "#f2c14e",
    "communicating": "#8fd3a8",
    "saving": "#5aa9e6",
    "evaluating": "#1f6fb2",
    "recomputing": "#c0392b",
    "recovering": "#e8896b",
    "finishing": "#7f8c9b",
    "idle": "#f0e6d2",
}


def draw_goodput(timeline: Timeline, title: str, path: Path) -> None:
    """Plot the share of each class over time, and the sums."""
    from matplotlib.figure import Figure  # here: it takes 0.4 s to import, which every start of a run would wait for

    figure = Figure(figsize=(10, 4.5), dpi=120, layout="constrained")
    time, sums = figure.subplots(1, 2, width_ratios=(2, 1))
    goodput = timeline.goodput
    seconds = goodput.seconds
    shown = [name for name in CLASSES if seconds[name] > 0.0005 * goodput.wall_s]
    unit, divisor = next(entry for entry in _UNITS if goodput.wall_s < 180 * entry[1] or entry is _UNITS[-1])
    if goodput.wall_s > 0:
        shares = timeline.over_time(_SLICES)
        rows = [shares[list(CLASSES).index(name)] for name in shown]
        width = goodput.wall_s / divisor / _SLICES
        middles = [(number + 0.5) * width for number in range(_SLICES)]
        time.stackplot(middles, rows, colors=[_COLORS[name] for name in shown], linewidth=0)
        time.set(xlim=(0, goodput.wall_s / divisor), ylim=(0, 1))
    time.set(xlabel=f"{unit} since the run was submitted", ylabel="share of the time", title=title)
    positions = range(len(shown))
    sums.barh(positions, [seconds[name] for name in shown], color=[_COLORS[name] for name in shown])
    labels = [f"{name}  {seconds[name]:,.1f} s ({seconds[name] / goodput.wall_s:.0%})" for name in shown]
    sums.set_yticks(positions, labels)
    sums.invert_yaxis()
    sums.set(xlabel="seconds", title=f"goodput {goodput.share:.0%}")
    figure.savefig(path)
