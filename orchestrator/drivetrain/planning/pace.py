"""How long a step takes: computing, communicating, moving what is offloaded. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import linear_regression, median

from drivetrain_workers.model_processes.requests import ModelProfile

from drivetrain.planning.hardware import Device
from drivetrain.planning.memory_estimate import Setting

_CPU_UPDATE_S = 20e-9  # for each trained parameter: torch's optimizers, and DeepSpeed's sums over gloo
_INTER_NODE_BANDWIDTH = 50e9  # bytes per second of each node, 400 Gb/s; a ring crosses it once
_PCIE_BANDWIDTH = 20e9  # bytes per second over PCIe
_HOST_ADAM_RATE = 1e9  # parameters per second that a node's CPUs update
_MIN_FLOPS_RATIO = 1.3  # by which steps must differ in work to tell what they take without any
_OVERLAP_FRACTION = 2 / 3  # of the computing, the backward pass, hides what is communicated meanwhile


@dataclass(frozen=True)
class Pace:
    """Of one optimizer step, in seconds, on every worker.

    Attributes:
        computing: forward and backward passes.
        communicating: what these do not hide.
        updating: what a step takes however few rows it has.
        offloading: moving gradients and weights, and updating them on the host.
        flops: operations of all workers.
    """

    computing: float
    communicating: float
    updating: float
    offloading: float
    flops: float

    @property
    def total(self) -> float:
        """Of the step."""
        return self.computing + self.communicating + self.updating + self.offloading


@dataclass(frozen=True)
class Speed:
    """What is known of how fast workers are.

    Attributes:
        rate: operations per second that one worker really does.
        updating_s: see `Pace.updating`.
        known_from: what it was learned from, for people.
        error: how far off a time may be, as a factor.
    """

    rate: float
    updating_s: float
    known_from: str
    error: float


def assumed_speed(profile: ModelProfile, device: Device, precision: str) -> Speed:
    """Where there is no past run: what transformers in plain PyTorch make of a device's peak."""
    mfu, updating_s = (0.35, 0.0) if device.is_gpu else (0.8, _CPU_UPDATE_S * profile.trained)
    return Speed(mfu * device.peak(precision), updating_s, f"an assumed {mfu:.0%} of the peak", 2.0)


def learned_speed(assumed: Speed, steps: Sequence[tuple[float, float]]) -> Speed:
    """What past runs have shown.

    Args:
        steps: of each run, the operations of one worker in a step, and the seconds that it took.
    """
    flops, seconds = zip(*steps, strict=True)
    name = f"{len(steps)} past run{'s' * (len(steps) > 1)}"
    if max(flops) > _MIN_FLOPS_RATIO * min(flops):
        slope, intercept = linear_regression(flops, seconds)
        if slope > 0 and intercept > 0:
            return Speed(1 / slope, intercept, name, 1.2)
    if assumed.updating_s:  # on CPUs: what computing at the assumed rate does not explain
        updating = median(took - work / assumed.rate for work, took in steps)
        if updating > 0:
            return Speed(assumed.rate, updating, name, 1.2)
    return Speed(median(work / took for work, took in steps), 0.0, name, 1.2)


def pace(profile: ModelProfile, setting: Setting, device: Device, batch: int, nodes: int, speed: Speed) -> Pace:
    """The pace of a setting.

    Args:
        batch: rows per step, of all workers.
        nodes: that the workers are spread over.
    """
    flops = profile.flops_per_row * batch
    computing = flops / speed.rate / setting.workers
    moved = setting.volume * profile.trained * setting.width * (setting.workers - 1) / setting.workers
    link = device.link if nodes == 1 else min(device.link, _INTER_NODE_BANDWIDTH)
    share = profile.trained / setting.workers
    offloading = 0.0
    if setting.offload_optimizer:
        offloading = share * (4 + setting.width) / _PCIE_BANDWIDTH + share / _HOST_ADAM_RATE
    exposed = (
        max(0.0, moved / link - _OVERLAP_FRACTION * computing) if device.is_gpu else 0.0
    )  # on CPUs a part of updating
    return Pace(computing, exposed, speed.updating_s, offloading, flops)
