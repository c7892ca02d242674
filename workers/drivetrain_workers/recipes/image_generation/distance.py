"""How far made pictures are from real ones."""

from __future__ import annotations

import torch

_WIDTHS = (2.0, 4.0, 8.0)  # of the kernels, in distances of pictures of 256 numbers in -1 to 1


def kernel_distance(made: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Squared maximum mean discrepancy (Gretton et al. 2012), without bias: 0, on average, for pictures of one kind.

    Args:
        made, real: float ``[rows, pixels]``.
    """
    return _mean(made, made) + _mean(real, real) - 2 * _kernel(made, real).mean()


def _mean(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Over pairs of different rows."""
    between = _kernel(x, y)
    rows = len(x)
    return (between.sum() - between.diagonal().sum()) / max(1, rows * (rows - 1))


def _kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    squares = torch.cdist(x, y).square()
    return torch.stack([torch.exp(-squares / (2 * width**2)) for width in _WIDTHS]).mean(0)
