"""Time per step: computing, communicating, offloading. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import linear_regression, median

from drivetrain_workers.model_processes.requests import ModelProfile

from drivetrain.planning.communication import messages, traffic
from drivetrain.planning.hardware import Device
from drivetrain.planning.memory_estimate import Setting

_CPU_UPDATE_S = 20e-9  # per trained parameter: torch's optimizers, and DeepSpeed's reductions over gloo
_PCIE_BANDWIDTH = 20e9  # bytes per second
_HOST_ADAM_RATE = 1e9  # parameters per second, on the CPUs of a node
_LATENCY_S = 30e-6  # of a collective, typical of NCCL
_MIN_FLOPS_RATIO = 1.3  # minimum spread of past runs for a linear regression
_OVERLAP_FRACTION = 2 / 3  # share of computing, the backward pass, that overlaps communication


@dataclass(frozen=True)
class Pace:
    """Time of one optimizer step on every worker, in seconds.

    Attributes:
        computing: forward and backward passes, and repeated forward passes.
        communicating: communication that does not overlap computing.
        updating: fixed time of a step, independent of the number of rows.
        offloading: moving gradients and weights, and updating them on the host.
        flops: operations of the model over all workers, without repeated ones.
        sent_bytes: of each worker.
    """

    computing: float
    communicating: float
    updating: float
    offloading: float
    flops: float
    sent_bytes: float

    @property
    def total(self) -> float:
        """Total time of the step."""
        return self.computing + self.communicating + self.updating + self.offloading


@dataclass(frozen=True)
class Speed:
    """The speed of workers.

    Attributes:
        rate: achieved operations per second of one worker.
        updating_s: see `Pace.updating`.
        known_from: source of the values, for display.
        error: uncertainty of an estimated time, as a factor.
    """

    rate: float
    updating_s: float
    known_from: str
    error: float


def assumed_speed(profile: ModelProfile, device: Device, precision: str) -> Speed:
    """Return the speed without past runs: typical utilization of transformers in plain PyTorch."""
    mfu, updating_s = (0.35, 0.0) if device.is_gpu else (0.8, _CPU_UPDATE_S * profile.trained)
    return Speed(mfu * device.peak(precision), updating_s, f"an assumed {mfu:.0%} of the peak", 2.0)


def learned_speed(assumed: Speed, steps: Sequence[tuple[float, float]]) -> Speed:
    """Return the speed measured in past runs.

    Args:
        assumed: see `assumed_speed`.
        steps: operations of one worker per step and seconds per step, by run.
    """
    flops, seconds = zip(*steps, strict=True)
    name = f"{len(steps)} past run{'s' * (len(steps) > 1)}"
    if max(flops) > _MIN_FLOPS_RATIO * min(flops):
        slope, intercept = linear_regression(flops, seconds)
        if slope > 0 and intercept > 0:
            return Speed(1 / slope, intercept, name, 1.2)
    if assumed.updating_s:  # on CPUs: the time not explained by computing at the assumed rate
        updating = median(took - work / assumed.rate for work, took in steps)
        if updating > 0:
            return Speed(assumed.rate, updating, name, 1.2)
    return Speed(median(work / took for work, took in steps), 0.0, name, 1.2)


def work(profile: ModelProfile, batch: int, recomputed: bool) -> float:
    """Return the operations of a step over all workers, with the repeated ones."""
    return (profile.flops_per_row + recomputed * profile.recomputed_flops_per_row) * batch


def communication_s(profile: ModelProfile, setting: Setting, device: Device, link: float, computing: float) -> float:
    """Return the seconds of a step's communication that do not overlap computing.

    Args:
        link: bytes per second between two workers.
        computing: seconds.
    """
    sent = traffic(setting, profile.parameters, profile.trained)
    if device.is_gpu:
        waiting = _LATENCY_S * messages(setting, profile.tensors) * (setting.workers > 1)
        exposed = max(0.0, sent.overlapping / link + waiting - _OVERLAP_FRACTION * computing)
        return exposed + sent.following / link
    once = traffic(replace(setting, accumulation=1), profile.parameters, profile.trained)
    return (sent.total - once.total) / link  # that of one micro-batch is part of updating


def pace(profile: ModelProfile, setting: Setting, device: Device, batch: int, link: float, speed: Speed) -> Pace:
    """Estimate the time per step of a setting.

    Args:
        profile: of the model.
        setting: settings of the job.
        device: of each worker.
        batch: rows per step over all workers.
        link: bytes per second between two workers.
        speed: of the workers.
    """
    computing = work(profile, batch, setting.recomputed) / speed.rate / setting.workers
    share = profile.trained / setting.workers
    offloading = 0.0
    if setting.offload_optimizer:
        offloading = share * (4 + setting.width) / _PCIE_BANDWIDTH + share / _HOST_ADAM_RATE
    exposed = communication_s(profile, setting, device, link, computing)
    sent = traffic(setting, profile.parameters, profile.trained).total
    return Pace(computing, exposed, speed.updating_s, offloading, profile.flops_per_row * batch, sent)
