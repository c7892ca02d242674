"""A flat buffer of a rank with the optimizer's state for it, and the parts of parameters in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

WEIGHTS = "weights"  # kind of a fragment with fp32 weights; other kinds are optimizer moments, by name
COUNTER = "step"  # name of the number of updates in an optimizer's state


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
        missed: number of updates that the buffer's parameter missed, where it has its own counter (ZeRO 0).
        tensor_counters: the optimizer keeps its counters as tensors; otherwise as integers.
    """

    weights: torch.Tensor
    optimizer: dict[str, Any]
    group: dict[str, Any]
    group_index: int
    spans: list[Span] = field(default_factory=list)
    saved_here: bool = True
    missed: int = 0
    tensor_counters: bool = True

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (kind, 1-D view) of the weights and every moment."""
        yield WEIGHTS, self.weights.view(-1)
        for name in sorted(self.optimizer):
            if self._is_moment(name):
                yield name, self.optimizer[name].view(-1)

    def _is_moment(self, name: str) -> bool:
        value = self.optimizer[name]
        return name != COUNTER and torch.is_tensor(value) and value.shape == self.weights.shape

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
        """Return the optimizer's counters, such as ``step``, as if the parameter had missed no update."""
        counters = {
            name: float(value)
            for name, value in self.optimizer.items()
            if not self._is_moment(name) and _is_number(value)
        }
        return {name: value + self.missed * (name == COUNTER) for name, value in counters.items()}

    def create(self, moments: set[str], scalars: dict[str, float]) -> None:
        """Create the entries that an optimizer creates in its first step, and set its counters."""
        for name in moments - self.optimizer.keys():
            self.optimizer[name] = torch.zeros_like(self.weights)
        for name, value in scalars.items():
            own = value - self.missed * (name == COUNTER)
            self.optimizer[name] = torch.tensor(own) if self.tensor_counters else int(own)


def _is_number(value: Any) -> bool:
    return (
        value.dim() == 0 if torch.is_tensor(value) else isinstance(value, int | float) and not isinstance(value, bool)
    )
