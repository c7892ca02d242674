"""How well made pictures can be told from real ones."""

from __future__ import annotations

import torch


def told_apart(made: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Whether each picture's nearest neighbour is of its own kind (Lopez-Paz and Oquab 2017); bool ``[2 * rows]``.

    For half of them it is when nobody can tell made pictures from real ones; for all, when everybody can.

    Args:
        made, real: as many of each; float ``[rows, pixels]``.
    """
    pictures = torch.cat([made, real])
    distances = torch.cdist(pictures, pictures)
    distances.fill_diagonal_(torch.inf)
    is_real = torch.arange(len(pictures), device=pictures.device) >= len(made)
    return is_real[distances.argmin(1)] == is_real
