"""Cost of a run: worker time, dollars, energy and CO2. Pure functions."""

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
    """The cost of a run so far.

    Attributes:
        worker_hours: hours with an allocation, times its workers.
        dollars: at ``resources.price_per_hour``; None without a price.
        energy_kwh: of the run's processes and GPUs; None without a measurement.
        energy_from: source of the measurement: ``nvml``, ``rapl``, ``estimate``.
        co2_kg: at ``resources.co2_g_per_kwh``.
    """

    worker_hours: float
    dollars: float | None
    energy_kwh: float | None
    energy_from: str
    co2_kg: float | None


def cost(seconds: float, joules: float | None, energy_from: str, resources: ResourcesSpec) -> Cost:
    """Return the cost of a run.

    Args:
        seconds: as returned by `worker_seconds`.
        joules: measured energy; None without a measurement.
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
    """Return the seconds in which a run had an allocation, times its workers.

    Args:
        history: its transitions, as returned by `drivetrain.runs.store.RunStore.history`.
        now: end of the interval if the allocation is not released.
    """
    return sum(workers * seconds for workers, seconds in _allocated_intervals(history, now))


def allocated_seconds(history: _History, now: float) -> float:
    """Return the seconds in which a run had an allocation. Args: see `worker_seconds`."""
    return sum(seconds for workers, seconds in _allocated_intervals(history, now) if workers)


def _allocated_intervals(history: _History, now: float) -> Iterator[tuple[int, float]]:
    marks = [
        (at, workers_of(state.allocation.placement) if isinstance(state, Allocated) else 0) for at, _, state in history
    ]
    for (at, workers), (then, _) in pairwise([*marks, (now, 0)]):
        yield workers, max(0.0, then - at)
