"""Devices of workers, by the vendors' data sheets."""

from __future__ import annotations

from dataclasses import dataclass

from drivetrain_pipelines.errors import InputError

_GB = 1e9
_TERA = 1e12


@dataclass(frozen=True)
class Device:
    """The device of one worker.

    Attributes:
        memory_bytes: available to a worker.
        overhead_bytes: memory used without a model: CUDA and NCCL, or the Python process.
        fp32, bf16: peak floating-point operations per second, without sparsity.
        link: bandwidth to each other worker of the node in one direction, in bytes per second.
        watts: at full load.
    """

    name: str
    memory_bytes: float
    overhead_bytes: float
    fp32: float
    bf16: float
    link: float
    watts: float

    @property
    def is_gpu(self) -> bool:
        """Whether the device is a GPU with its own memory."""
        return self.name != "cpu"

    def peak(self, precision: str) -> float:
        """Return the peak floating-point operations per second."""
        return self.bf16 if precision == "bf16" else self.fp32


def _gpu(name: str, memory: float, fp32: float, bf16: float, link: float, watts: float) -> Device:
    return Device(name, memory * _GB, 1.5 * _GB, fp32 * _TERA, bf16 * _TERA, link * _GB, watts)


# Dense tensor-core bf16 and plain fp32, NVLink or PCIe, of the variants in clouds. T4 and V100 have no bf16.
_GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("b200", 180, 75, 2250, 900, 1000),
        _gpu("h200", 141, 67, 989, 450, 700),
        _gpu("h100", 80, 67, 989, 450, 700),
        _gpu("a100", 80, 19.5, 312, 300, 400),
        _gpu("a100-40g", 40, 19.5, 312, 300, 400),
        _gpu("l40s", 48, 91.6, 362, 32, 350),
        _gpu("l4", 24, 30.3, 121, 16, 72),
        _gpu("a10g", 24, 31.2, 70, 32, 300),
        _gpu("v100", 32, 15.7, 15.7, 150, 300),
        _gpu("t4", 16, 8.1, 8.1, 16, 70),
    )
}

DEFAULT_NETWORK_GBPS = 400.0  # of each node, as in clouds' machines with eight GPUs
_WATTS_PER_CORE = 10.0  # the same value as in the energy estimate of runs
_LOOPBACK_BANDWIDTH = 2 * _GB  # gloo over loopback


def gpu(name: str, key: str) -> Device:
    """Return a GPU by its name; ``key`` is the option or job key that names it.

    Raises:
        InputError: the GPU is unknown.
    """
    if name.lower() not in _GPUS:
        raise InputError(key, repr(name), ", ".join(_GPUS))
    return _GPUS[name.lower()]


def cpu(memory_bytes: float, base_bytes: float, flops: float, cores: int) -> Device:
    """Return a device for some CPU cores of this machine.

    Args:
        memory_bytes: available to one worker.
        base_bytes: memory of a worker without a model.
        flops: operations per second of one core, measured with a matrix product.
        cores: number of cores.
    """
    return Device(
        "cpu", memory_bytes, base_bytes, flops * cores, flops * cores, _LOOPBACK_BANDWIDTH, _WATTS_PER_CORE * cores
    )


@dataclass(frozen=True)
class Hardware:
    """The hardware of a job.

    Attributes:
        gpu: of each worker; None for CPUs.
        worker_bytes: host memory available to each worker.
        network_gbps: bandwidth of each node's network in one direction, in gigabits per second.
    """

    workers: int
    nodes: int
    gpu: Device | None
    worker_bytes: float
    network_gbps: float = DEFAULT_NETWORK_GBPS

    def link(self, device: Device) -> float:
        """Return the bandwidth between two workers, in bytes per second. A ring uses the network of a node once."""
        return device.link if self.nodes == 1 else min(device.link, self.network_gbps * _GB / 8)
