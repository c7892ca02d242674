"""What a run has cost: time of workers, dollars, energy and CO2. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from drivetrain.job.spec import ResourcesSpec
from drivetrain.runs.states import Allocated, State
from drivetrain.scheduling.model import workers_of

_JOULES_PER_KWH = 3.6e6
_History = Iterable[tuple[float, str, State]]


@dataclass(frozen=True)
class Cost:
    """Of a run, so far.

    Attributes:
        worker_hours: for which the run has held a place, times the workers there.
        dollars: at ``resources.price_per_hour``; None without a price.
        energy_kwh: of the run's processes and GPUs; None where nothing was measured.
        energy_from: how it was measured: ``nvml``, ``rapl``, ``estimate``.
        co2_kg: at ``resources.co2_g_per_kwh``.
    """

    worker_hours: float
    dollars: float | None
    energy_kwh: float | None
    energy_from: str
    co2_kg: float | None


def cost(seconds: float, joules: float | None, energy_from: str, resources: ResourcesSpec) -> Cost:
    """The cost of a run.

    Args:
        seconds: as of `worker_seconds`.
        joules: that were measured; None where nothing was.
    """
    hours = seconds / 3600
    kwh = None if joules is None else joules / _JOULES_PER_KWH
    return Cost(
        hours,
        None if resources.price_per_hour is None else hours * resources.price_per_hour,
        kwh,
        energy_from,
        None if kwh is None else kwh * resources.co2_g_per_kwh / 1000,
    )


def worker_seconds(history: _History, now: float) -> float:
    """Seconds in which a run had a place, times its workers there.

    Args:
        history: its transitions, as of `drivetrain.runs.store.RunStore.history`.
        now: until when, unless it has given the place back.
    """
    return sum(workers * seconds for workers, seconds in _allocated_intervals(history, now))


def allocated_seconds(history: _History, now: float) -> float:
    """Seconds in which a run had a place. Args: see `worker_seconds`."""
    return sum(seconds for workers, seconds in _allocated_intervals(history, now) if workers)


def _allocated_intervals(history: _History, now: float) -> Iterator[tuple[int, float]]:
    marks = [
        (at, workers_of(state.allocation.placement) if isinstance(state, Allocated) else 0) for at, _, state in history
    ]
    for (at, workers), (then, _) in pairwise([*marks, (now, 0)]):
        yield workers, max(0.0, then - at)
