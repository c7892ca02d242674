"""Conversion of a job's training section to DeepSpeed's configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from drivetrain_pipelines.errors import InputError

from drivetrain_workers.engine.batching import BatchPlan
from drivetrain_workers.spec import ScheduleSpec, TrainingSpec

# Drivetrain sets these: they follow from the batch plan or from our checkpoints and schedule.
_RESERVED_KEYS = {
    "train_batch_size": "training.global_batch_size",
    "train_micro_batch_size_per_gpu": "training.micro_batch_size",
    "gradient_accumulation_steps": "training.global_batch_size and training.micro_batch_size",
    "scheduler": "training.lr_schedule",
    "optimizer": "training.optimizer",
    "fp16": "training.precision (fp16 is not supported yet)",
    "bf16": "training.precision",
    "checkpoint": "the checkpoint section",
}


_ADAM = ("lr", "betas", "eps", "weight_decay")
_OPTIMIZER_SETTINGS = {
    **dict.fromkeys(("Adam", "AdamW", "Lamb"), _ADAM),
    "Lion": ("lr", "betas", "weight_decay"),
    "SGD": ("lr", "momentum", "weight_decay"),
}


def deepspeed_config(spec: TrainingSpec, plan: BatchPlan, on_cpu: bool) -> dict[str, Any]:
    """Return DeepSpeed's configuration of this run, with ``training.deepspeed`` merged in last.

    Raises:
        InputError: DeepSpeed has the optimizer for GPUs only.
    """
    optimizer = spec.optimizer.model_dump(include=set(_OPTIMIZER_SETTINGS[spec.optimizer.type]))
    if spec.optimizer.type in ("Adam", "AdamW"):
        optimizer["adam_w_mode"] = spec.optimizer.type == "AdamW"  # otherwise DeepSpeed's Adam would be AdamW
        if on_cpu:
            optimizer["torch_adam"] = True  # DeepSpeed's own optimizer would be compiled on first use
    elif on_cpu and spec.optimizer.type != "SGD":
        raise InputError("training.optimizer.type", f"{spec.optimizer.type} on CPUs", "Adam, AdamW or SGD")
    zero: dict[str, Any] = {"stage": spec.stage}
    for part, device in (("optimizer", spec.offload.optimizer), ("param", spec.offload.parameters)):
        if device != "none":
            zero[f"offload_{part}"] = {"device": device, "pin_memory": not on_cpu}
            if device == "nvme":
                zero[f"offload_{part}"]["nvme_path"] = spec.offload.nvme_path
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_clipping": spec.gradient_clipping,
        "optimizer": {"type": spec.optimizer.type, "params": optimizer},
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": not on_cpu,  # otherwise offloading would compile an optimizer
        "zero_allow_untested_optimizer": spec.optimizer.type == "SGD",
        "bf16": {"enabled": spec.precision == "bf16"},
        "steps_per_print": 1 << 62,
    }
    return _merge(config, spec.deepspeed)


def check_passthrough(spec: TrainingSpec) -> None:
    """Raise `InputError` when ``training.deepspeed`` sets what another key of the job file decides."""
    for key, owner in _RESERVED_KEYS.items():
        if key in spec.deepspeed:
            raise InputError(f"training.deepspeed.{key}", repr(spec.deepspeed[key]), "nothing", f"Set {owner} instead.")
    zero = spec.deepspeed.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise InputError("training.deepspeed.zero_optimization", repr(zero), "a mapping")
    stage = zero.get("stage", spec.zero_stage)
    if stage != spec.zero_stage:
        raise InputError(
            "training.deepspeed.zero_optimization.stage", str(stage), f"training.zero_stage ({spec.zero_stage})"
        )


def learning_rate_ratio(schedule: ScheduleSpec, steps: int) -> Callable[[int], float]:
    """Return the ratio of the learning rate at step 0, 1, ...: a pure function, so a resume needs no state."""

    def ratio(step: int) -> float:
        if step < schedule.warmup_steps:
            return (step + 1) / schedule.warmup_steps
        if schedule.type == "constant":
            return 1.0
        progress = min(1.0, (step - schedule.warmup_steps) / max(1, steps - schedule.warmup_steps))
        decay = (1 + math.cos(math.pi * progress)) / 2 if schedule.type == "cosine" else 1 - progress
        return schedule.min_ratio + (1 - schedule.min_ratio) * decay

    return ratio


def _merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in override.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
