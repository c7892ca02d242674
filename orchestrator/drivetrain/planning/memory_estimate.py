"""Memory of one worker, term by term. Pure functions.

On GPUs the terms are those of Rajbhandari et al. 2020 (ZeRO), with DeepSpeed's buckets. On CPUs the peak of a rank also
contains the copy for checkpoints, and freed blocks that glibc keeps for the next step.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from drivetrain_workers.model_processes.requests import ModelProfile

from drivetrain.planning.hardware import Device

_FP32_BYTES = 4  # size of the weights that the optimizer updates
_BUCKET_SIZE = 500_000_000  # elements; DeepSpeed's reduce_bucket_size
MAX_LIVE_PARAMETERS = 1_000_000_000  # elements; stage3_max_live_parameters
_MOMENTS = {"SGD": 1, "Lion": 1}  # per weight; two for other optimizers
_UPDATE_BUFFERS = {"SGD": 0}  # elements per weight for torch's update on a CPU; two for other optimizers


@dataclass(frozen=True)
class Setting:
    """The settings of a job that determine its memory.

    Attributes:
        zero_stage: ZeRO stage.
        workers: number of workers over which the stage partitions its state.
        micro_batch: rows.
        optimizer: type of the optimizer.
        accumulation: micro-batches per step.
        recomputed: whether forward passes are repeated in the backward pass, by ``training.activation_checkpointing``.
    """

    zero_stage: int
    workers: int
    micro_batch: int
    precision: str
    optimizer: str
    offload_optimizer: bool = False
    offload_parameters: bool = False
    accumulation: int = 1
    recomputed: bool = False

    @property
    def width(self) -> int:
        """Bytes per element in the model's computation."""
        return 2 if self.precision == "bf16" else _FP32_BYTES

    @property
    def state_bytes(self) -> int:
        """Bytes per trained parameter in a checkpoint: the weight and its moments."""
        return _FP32_BYTES * (1 + _MOMENTS.get(self.optimizer, 2))


@dataclass(frozen=True)
class Memory:
    """Memory of one worker by purpose, in bytes.

    Attributes:
        base: process without a model.
        optimizer: fp32 weights, gradients and moments.
        activations: tensors that the forward pass stores for the backward pass.
        buffers: for reducing gradients and gathering weights.
        copy: source for writing a checkpoint.
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
        """Total at the peak."""
        return sum(asdict(self).values(), 0.0)


def memory(profile: ModelProfile, setting: Setting, device: Device) -> Memory:
    """Estimate the memory of one worker on its device, without offloaded state."""
    trained, frozen, width = profile.trained, profile.parameters - profile.trained, setting.width
    share = trained / setting.workers if setting.zero_stage else trained
    weights = width * (share if setting.zero_stage == 3 else trained) + width * frozen
    gradients = width * (share if setting.zero_stage >= 2 else trained)
    moments = setting.state_bytes - _FP32_BYTES
    optimizer = share * (moments + 2 * _FP32_BYTES if setting.zero_stage else moments)
    buffers = float(width * min(_BUCKET_SIZE, trained) * (2 if setting.zero_stage else 1))
    if setting.zero_stage == 3:
        buffers += width * min(MAX_LIVE_PARAMETERS, trained)
    activations = profile.kept_bytes_fixed + profile.kept_bytes_per_row * setting.micro_batch
    copy = slack = 0.0
    if device.is_gpu:  # fused optimizers need no further buffers
        optimizer *= not setting.offload_optimizer
        weights *= not setting.offload_parameters
    else:
        copy = share * setting.state_bytes
        if setting.zero_stage:  # the update runs after the activations are freed
            buffers += max(0.0, share * _FP32_BYTES * _UPDATE_BUFFERS.get(setting.optimizer, 2) - activations)
        slack = _fragmentation(setting) * (weights + gradients + optimizer + buffers)
    return Memory(device.overhead_bytes, weights, gradients, optimizer, activations, buffers, copy, slack)


def host_memory(profile: ModelProfile, setting: Setting) -> float:
    """Estimate the host memory per GPU: offloaded state and the copy for checkpoints."""
    share = profile.trained / setting.workers if setting.zero_stage else profile.trained
    offloaded = share * (setting.state_bytes + _FP32_BYTES) if setting.offload_optimizer else 0.0
    return offloaded + share * setting.width * setting.offload_parameters + share * setting.state_bytes


def _fragmentation(setting: Setting) -> float:
    """Return the heap fragmentation as a fraction of weights, gradients, optimizer and buffers.

    The values were measured with DeepSpeed 0.19. The copy for checkpoints is not on the heap, and activations reuse the
    same blocks in every step.
    """
    if setting.zero_stage == 2:
        return 0.60 if setting.workers > 1 else 0.35
    return {0: 0.32, 1: 0.49, 3: 1.05}[setting.zero_stage]  # stage 3 allocates and frees full weights, layer by layer
