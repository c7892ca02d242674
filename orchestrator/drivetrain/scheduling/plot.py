"""Plots of simulated policies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from drivetrain.scheduling.simulation import Result


def draw(results: Mapping[str, Result], path: Path) -> None:
    """Plot the utilization of the cluster over time and the completion times of jobs, by policy."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    use, done = figure.subplots(1, 2)
    for name, result in results.items():
        hours, busy = result.busy[:, 0] / 3600, result.busy[:, 1]
        grid = np.linspace(hours[0], hours[-1], 400)
        use.plot(grid, _mean_between(hours, busy, grid), label=f"{name}: {result.utilisation:.0%}")
        completion = np.sort(result.completion_s) / 3600
        done.plot(completion, np.arange(1, len(completion) + 1) / len(completion), label=name)
    use.set(xlabel="hours", ylabel="GPUs in use", ylim=(0, 1.02), title="utilization")
    done.set(xlabel="hours from submission to end", ylabel="fraction of jobs", xscale="log", title="completion times")
    for axes in (use, done):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


def _mean_between(times: np.ndarray, values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Return the mean of a step function over each interval of a grid."""
    area = np.concatenate([[0.0], np.cumsum(np.diff(times) * values[:-1])])
    at_grid = np.interp(grid, times, area)
    width = grid[1] - grid[0] if grid[-1] > grid[0] else 1.0
    return np.concatenate([[values[0]], np.diff(at_grid) / width])
