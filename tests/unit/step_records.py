"""Records of optimizer steps, for tests."""

from __future__ import annotations

from typing import Any

from drivetrain_workers.protocol.step_record import StepRecord


def step_record(step: int, **fields: Any) -> StepRecord:
    """Return the record of a step of two ranks with a global batch of 8, with ``fields`` replaced."""
    ordinary = {
        "positions": (8 * (step - 1), 8 * step),
        "world_size": 2,
        "generation": 1,
        "time": 1000.0 + step,
        "loss": 1.0 / step,
        "learning_rate": 0.1,
        "gradient_norm": 1.0,
    }
    return StepRecord(step, **{**ordinary, **fields})
