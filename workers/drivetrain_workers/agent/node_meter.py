"""Load of a node, and the energy that a run uses on it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pynvml

# Power of a busy core, with its share of memory, fans and power supply, where no meter exists: a server with 64 cores
# takes about 600 W.
_WATTS_PER_CORE = 10.0
_RAPL = Path("/sys/class/powercap")
_MB = 1e6


@dataclass(frozen=True)
class Reading:
    """Measurements since the previous reading.

    Attributes:
        values: by MLflow's names of system metrics; rates and energies cover the time since the previous reading.
        energy_j: energy of the run's processes and GPUs, in joules.
        energy_from: ``nvml``, ``rapl`` or ``estimate``; several of them where CPUs and GPUs were measured differently,
            and ``no gpu`` where a GPU cannot be measured.
    """

    values: dict[str, float]
    energy_j: float
    energy_from: str


class NodeMeter:
    """Measures a node, and the run's part of it.

    Args:
        gpus: GPUs of the run, by index as in NVML, or by UUID.
        disk: a folder on the disk to measure.
    """

    def __init__(self, gpus: list[str], disk: Path) -> None:
        self._disk = disk
        self._gpus: list[_Gpu] = []
        for gpu in gpus:
            with suppress(pynvml.NVMLError):  # a MIG slice, or a driver that does not report it
                self._gpus.append(_Gpu(gpu))
        self._unknown = len(self._gpus) < len(gpus)
        self._network, self._cpu = psutil.net_io_counters(), _CpuEnergy()
        psutil.cpu_percent()  # the first call only starts the measurement

    def read(self) -> Reading:
        """Measure. The first reading counts from the construction of the meter."""
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(self._disk))
        network = psutil.net_io_counters()
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / _MB,
            "system_memory_usage_percentage": memory.percent,
            "disk_usage_megabytes": disk.used / _MB,
            "disk_usage_percentage": disk.percent,
            "network_receive_megabytes": (network.bytes_recv - self._network.bytes_recv) / _MB,
            "network_transmit_megabytes": (network.bytes_sent - self._network.bytes_sent) / _MB,
        }
        self._network = network
        joules, source = self._cpu.take()
        sources = {source, "no gpu"} if self._unknown else {source}
        for gpu in self._gpus:
            found, gpu_joules = gpu.read()
            values |= found
            joules += gpu_joules
            sources.add("nvml")
        return Reading(values, joules, ", ".join(sorted(sources)))


class _Gpu:
    """One GPU, measured with NVML."""

    def __init__(self, name: str) -> None:
        pynvml.nvmlInit()
        self._name = f"gpu_{name}"
        by_index = name.isdigit()
        self._handle = (
            pynvml.nvmlDeviceGetHandleByIndex(int(name)) if by_index else pynvml.nvmlDeviceGetHandleByUUID(name)
        )
        self._millijoules = pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)

    def read(self) -> tuple[dict[str, float], float]:
        """Return values by name, and joules since the last reading."""
        memory = pynvml.nvmlDeviceGetMemoryInfo(self._handle)
        before, self._millijoules = self._millijoules, pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        values = {
            f"{self._name}_utilization_percentage": float(pynvml.nvmlDeviceGetUtilizationRates(self._handle).gpu),
            f"{self._name}_memory_usage_megabytes": memory.used / _MB,
            f"{self._name}_memory_usage_percentage": 100 * memory.used / memory.total,
            f"{self._name}_power_usage_watts": pynvml.nvmlDeviceGetPowerUsage(self._handle) / 1000,
        }
        return values, (self._millijoules - before) / 1000


class _CpuEnergy:
    """Energy of this process and its descendants: their part of what RAPL counts, or an estimate."""

    def __init__(self) -> None:
        self._packages = _rapl_packages()
        self._counted = [read() for read, _ in self._packages]
        self._own, self._whole = _own_seconds(), _busy_seconds()

    def take(self) -> tuple[float, str]:
        """Return joules since the last reading, and how they were measured."""
        own_before, whole_before, counted_before = self._own, self._whole, self._counted
        self._own, self._whole = _own_seconds(), _busy_seconds()
        own = max(0.0, self._own - own_before)  # processes that have ended are not counted any more
        if not self._packages:
            return own * _WATTS_PER_CORE, "estimate"
        self._counted = [read() for read, _ in self._packages]
        microjoules = sum(
            (now - before) % largest  # the counter wraps around at its largest value
            for now, before, (_, largest) in zip(self._counted, counted_before, self._packages, strict=True)
        )
        whole = max(self._whole - whole_before, own, 1e-9)
        return microjoules / 1e6 * own / whole, "rapl"


def _rapl_packages() -> list[tuple[Callable[[], int], int]]:
    """Return for each readable CPU package its counter in microjoules, and the value at which it wraps around."""
    found: list[tuple[Callable[[], int], int]] = []
    for folder in sorted(_RAPL.glob("intel-rapl:?")):
        with suppress(OSError, ValueError):
            counter, largest = folder / "energy_uj", int((folder / "max_energy_range_uj").read_text())
            int(counter.read_text())
            found.append((lambda counter=counter: int(counter.read_text()), largest))  # type: ignore[misc]
    return found


def _own_seconds() -> float:
    """Return the CPU time of this process and its descendants."""
    total = 0.0
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.system + times.nice)
