"""How much memory one worker needs, term by term. Pure functions.

On GPUs the terms are those of Rajbhandari et al. 2020 (ZeRO), with DeepSpeed's buckets. On CPUs a rank's peak also has
the copy that a checkpoint is written from, and what glibc keeps of freed blocks for the next step.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from drivetrain_workers.model_processes.requests import ModelProfile

from drivetrain.planning.hardware import Device

_FP32_BYTES = 4  # bytes of fp32, in which weights are updated
_BUCKET_SIZE = 500_000_000  # numbers; DeepSpeed's reduce_bucket_size
_MAX_LIVE_PARAMETERS = 1_000_000_000  # numbers; stage3_max_live_parameters
_MOMENTS = {"SGD": 1, "Lion": 1}  # of each weight; two of the others
_UPDATE_BUFFERS = {"SGD": 0}  # numbers for each weight that torch's update needs on a CPU; two for the others


@dataclass(frozen=True)
class Setting:
    """What of a job decides about its memory.

    Attributes:
        zero: ZeRO stage.
        workers: that share what the stage shares.
        micro_batch: rows.
        optimizer: its type.
    """

    zero: int
    workers: int
    micro_batch: int
    precision: str
    optimizer: str
    offload_optimizer: bool = False
    offload_parameters: bool = False

    @property
    def width(self) -> int:
        """Bytes of a number that the model computes with."""
        return 2 if self.precision == "bf16" else _FP32_BYTES

    @property
    def volume(self) -> float:
        """How often a step sends all of the gradients' size, in each direction."""
        return 3.0 if self.zero == 3 else 2.0

    @property
    def state_bytes(self) -> int:
        """Of each trained parameter that a checkpoint has: the weight and its moments."""
        return _FP32_BYTES * (1 + _MOMENTS.get(self.optimizer, 2))


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker, by what they are for.

    Attributes:
        base: of the process before there is a model.
        optimizer: fp32 weights, gradients and moments.
        activations: what the forward pass keeps for the backward pass.
        buffers: in which gradients are summed and weights gathered.
        copy: that a checkpoint is written from.
        slack: freed blocks that are kept for the next step, on CPUs.
    """

    base: float
    weights: float
    gradients: float
    optimizer: float
    activations: float
    buffers: float
    copy: float
    slack: float

    @property
    def total(self) -> float:
        """At the peak."""
        return sum(asdict(self).values(), 0.0)


def memory(profile: ModelProfile, setting: Setting, device: Device) -> Memory:
    """The memory of one worker on its device; what is offloaded is not there."""
    trained, frozen, width = profile.trained, profile.parameters - profile.trained, setting.width
    share = trained / setting.workers if setting.zero else trained
    weights = width * (share if setting.zero == 3 else trained) + width * frozen
    gradients = width * (share if setting.zero >= 2 else trained)
    moments = setting.state_bytes - _FP32_BYTES
    optimizer = share * (moments + 2 * _FP32_BYTES if setting.zero else moments)
    buffers = float(width * min(_BUCKET_SIZE, trained) * (2 if setting.zero else 1))
    if setting.zero == 3:
        buffers += width * min(_MAX_LIVE_PARAMETERS, trained)
    activations = profile.kept_bytes_fixed + profile.kept_bytes_per_row * setting.micro_batch
    copy = slack = 0.0
    if device.is_gpu:  # where fused optimizers need nothing beside
        optimizer *= not setting.offload_optimizer
        weights *= not setting.offload_parameters
    else:
        copy = share * setting.state_bytes
        if setting.zero:  # the update comes when what the forward pass kept is gone
            buffers += max(0.0, share * _FP32_BYTES * _UPDATE_BUFFERS.get(setting.optimizer, 2) - activations)
        slack = _kept_freed(setting) * (weights + gradients + optimizer + buffers)
    return Memory(device.overhead_bytes, weights, gradients, optimizer, activations, buffers, copy, slack)


def host_memory(profile: ModelProfile, setting: Setting) -> float:
    """Bytes of a node's memory for each of its GPUs: what is offloaded, and the copy for checkpoints."""
    share = profile.trained / setting.workers if setting.zero else profile.trained
    offloaded = share * (setting.state_bytes + _FP32_BYTES) if setting.offload_optimizer else 0.0
    return offloaded + share * setting.width * setting.offload_parameters + share * setting.state_bytes


def _kept_freed(setting: Setting) -> float:
    """What glibc loses to gaps, as a share of weights, gradients, optimizer and buffers; measured, with DeepSpeed 0.19.

    The copy for checkpoints is not on the heap, and activations come and go in the same places with every step.
    """
    if setting.zero == 2:
        return 0.60 if setting.workers > 1 else 0.35
    return {0: 0.32, 1: 0.49, 3: 1.05}[setting.zero]  # stage 3 makes and frees whole weights, layer by layer
