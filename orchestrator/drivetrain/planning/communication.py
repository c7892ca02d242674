"""Bytes that a worker sends in one optimizer step, as DeepSpeed 0.19 communicates. Pure functions.

A ring sends ``(workers - 1) / workers`` of a message for each gather, scatter and reduction, and twice that for an
all-reduce, which is a reduction and a gather. The number of each was counted with two ranks, see
``tests/unit/test_planned_communication.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

from drivetrain.planning.memory_estimate import MAX_LIVE_PARAMETERS, Setting


@dataclass(frozen=True)
class Traffic:
    """Bytes that each worker sends in a step.

    Attributes:
        overlapping: sent during backward passes.
        following: sent after the update.
    """

    overlapping: float
    following: float

    @property
    def total(self) -> float:
        """All bytes."""
        return self.overlapping + self.following


def messages(setting: Setting, tensors: int) -> int:
    """Return the number of messages that a step waits for, with weights and gradients in ``tensors`` tensors.

    ZeRO-3 gathers the weights module by module, the other stages communicate in large buckets.
    """
    if setting.zero_stage == 3:
        return 2 * tensors * setting.accumulation
    return 1 + (setting.accumulation if setting.zero_stage == 2 else setting.zero_stage)


def traffic(setting: Setting, parameters: int, trained: int, max_live: int = MAX_LIVE_PARAMETERS) -> Traffic:
    """Return the bytes that each worker sends in a step.

    Args:
        parameters: of the model, of which ``trained`` are trained.
        max_live: number of weights that ZeRO-3 keeps between the forward and the backward pass.
    """
    share = setting.width * (setting.workers - 1) / setting.workers
    gradients, weights = share * trained, share * parameters
    if setting.zero_stage == 0:  # gradients are summed over micro-batches before they are reduced
        return Traffic(2 * gradients, 0.0)
    if setting.zero_stage == 1:
        return Traffic(2 * gradients, gradients)
    if setting.zero_stage == 2:  # no worker holds all gradients, so each micro-batch is reduced
        return Traffic(2 * gradients * setting.accumulation, gradients)
    gathers = 2 - min(1.0, max_live / parameters)  # in the forward pass, and again in the backward pass
    return Traffic((gathers * weights + gradients) * setting.accumulation, 0.0)
