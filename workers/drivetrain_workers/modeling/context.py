"""Information for a user's loss, metrics and predictions about the current call."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from drivetrain_pipelines.order.permutation import mix_key

# Constants of the splitmix64 finaliser (Steele, Lea, Flood 2014), as signed integers, which torch has.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_FACTORS = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))
_SHIFTS = (30, 27)
_BITS = 24  # fraction bits of a float32


@dataclass
class TrainContext:
    """Passed to a function of the job that has a parameter named ``context``.

    Attributes:
        step: optimizer steps done before this call.
        steps: optimizer steps of the whole run.
        training: False while the model is evaluated.
        rank, world_size: of this process in the gang.
        seed: seed of the job.
        positions: int64 ``[rows]``: position of each row of the batch in the stream of training samples, or in
            the eval split. The same at any world size.
        classes: names of the labels 0, 1, ...; empty where there are none.
    """

    step: int
    steps: int
    training: bool
    rank: int
    world_size: int
    seed: int
    positions: torch.Tensor
    classes: tuple[str, ...] = ()
    _draws: int = field(default=0, init=False, repr=False)

    def names(self, labels: torch.Tensor) -> list[str]:
        """Return the names of labels ``[rows]``; their numbers as text where they have no names."""
        return [self.classes[n] if n < len(self.classes) else str(n) for n in labels.tolist()]

    def uniform(self, *shape: int) -> torch.Tensor:
        """Return random numbers float32 ``[rows, *shape]`` from [0, 1), the same for a sample at any world size.

        They depend on the job's seed, on each row's position, and on the number of earlier draws in this call.
        """
        return self._bits(math.prod(shape)).view(-1, *shape)

    def normal(self, *shape: int) -> torch.Tensor:
        """Return random numbers like `uniform`, from the standard normal distribution (Box and Muller 1958)."""
        count = math.prod(shape)
        bits = self._bits(2 * count)
        angle, radius = bits[:, :count], bits[:, count:]
        return (torch.sqrt(-2 * torch.log1p(-radius)) * torch.cos(2 * math.pi * angle)).view(-1, *shape)

    def _bits(self, count: int) -> torch.Tensor:
        """Return float32 ``[rows, count]``: the upper bits of a hash, as a fraction."""
        self._draws += 1
        key = mix_key(self.seed, self._draws, self.step * self.training, self.training)
        signed = key - (1 << 64) if key >> 63 else key
        rows = _hash(self.positions ^ signed)
        columns = torch.arange(1, count + 1, device=rows.device) * _GOLDEN
        return _shifted(_hash(rows[:, None] + columns), 64 - _BITS).float() * 2.0**-_BITS


def _hash(values: torch.Tensor) -> torch.Tensor:
    """Apply the splitmix64 finaliser to int64 values, with wrap-around."""
    for shift, factor in zip(_SHIFTS, _FACTORS, strict=True):
        values = (values ^ _shifted(values, shift)) * factor
    return values ^ _shifted(values, 31)


def _shifted(values: torch.Tensor, by: int) -> torch.Tensor:
    """Shift to the right, as if the values were unsigned."""
    return (values >> by) & ((1 << (64 - by)) - 1)
