"""A two-sample test of generated and real pictures."""

from __future__ import annotations

import torch


def two_sample_accuracy(generated: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Check whether each nearest neighbour is of the same kind (Lopez-Paz and Oquab 2017); bool ``[2 * rows]``.

    The mean is 0.5 when generated and real pictures cannot be distinguished, and 1 when they always can.

    Args:
        generated, real: the same number of each; float ``[rows, pixels]``.
    """
    pictures = torch.cat([generated, real])
    distances = torch.cdist(pictures, pictures)
    distances.fill_diagonal_(torch.inf)
    is_real = torch.arange(len(pictures), device=pictures.device) >= len(generated)
    return is_real[distances.argmin(1)] == is_real
