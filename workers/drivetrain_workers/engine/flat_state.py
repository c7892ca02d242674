"""A flat buffer of a rank with the optimizer's state for it, and the parts of parameters in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

WEIGHTS = "weights"  # kind of a fragment with fp32 weights; other kinds are optimizer moments, by name


@dataclass(frozen=True)
class Span:
    """``length`` elements of ``parameter`` from ``start`` on are at element ``at`` of a flat buffer."""

    parameter: str
    start: int
    length: int
    at: int

    @property
    def end(self) -> int:
        """End of the span in the buffer."""
        return self.at + self.length


@dataclass
class FlatState:
    """A flat buffer of fp32 weights with the optimizer's state for it.

    Attributes:
        weights: the live buffer itself; flat, or a whole parameter under ZeRO 0.
        optimizer: the optimizer's own state dict for that buffer: moments of the same shape, and scalars.
        group: the optimizer's parameter group, with its hyper-parameters.
        group_index: index of that group.
        saved_here: False where another rank saves the same (replicated) buffer.
    """

    weights: torch.Tensor
    optimizer: dict[str, Any]
    group: dict[str, Any]
    group_index: int
    spans: list[Span] = field(default_factory=list)
    saved_here: bool = True

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (kind, 1-D view) of the weights and every moment."""
        yield WEIGHTS, self.weights.view(-1)
        for name in sorted(self.optimizer):
            value = self.optimizer[name]
            if torch.is_tensor(value) and value.shape == self.weights.shape and value.dim() > 0:
                yield name, value.view(-1)

    def runs(self) -> Iterator[tuple[int, int, list[Span]]]:
        """Yield (begin, end, spans) of the ranges that spans fill without a gap.

        The gaps are DeepSpeed's padding, whose memory is never written: it is undefined and must not be saved.
        """
        run: list[Span] = []
        for span in self.spans:
            if run and span.at != run[-1].end:
                yield run[0].at, run[-1].end, run
                run = []
            run.append(span)
        if run:
            yield run[0].at, run[-1].end, run

    def scalars(self) -> dict[str, float]:
        """Return the optimizer's counters, such as ``step``, which torch keeps as tensors without dimensions."""
        return {k: float(v) for k, v in self.optimizer.items() if torch.is_tensor(v) and v.dim() == 0}

    def create(self, moments: set[str], scalars: dict[str, float]) -> None:
        """Create the entries that an optimizer creates in its first step, and set its counters."""
        for name in moments - self.optimizer.keys():
            self.optimizer[name] = torch.zeros_like(self.weights)
        for name, value in scalars.items():
            self.optimizer[name] = torch.tensor(value)
