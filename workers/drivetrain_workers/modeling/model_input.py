"""Columns of a batch as the model takes them."""

from __future__ import annotations

import torch
from drivetrain_pipelines.stream.columns import Ragged, Values

# A column of a batch: a tensor [rows, ...], or one tensor per row where rows have different lengths.
ModelInput = torch.Tensor | list[torch.Tensor]


def to_tensor(values: Values, device: torch.device) -> ModelInput:
    """Convert a column of a batch to the model's input."""
    if isinstance(values, Ragged):
        # Copied, because Arrow's memory is read-only and torch has no read-only tensors.
        return [torch.from_numpy(values.row(n).copy()).to(device) for n in range(len(values))]
    tensor = torch.from_numpy(values).to(device, non_blocking=True)
    # Unsigned tokens and labels are widened here, where it is cheap; images stay bytes.
    return tensor if tensor.is_floating_point() or tensor.dtype == torch.uint8 else tensor.long()
