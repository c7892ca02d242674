"""Noticing that training goes wrong: a loss that is no number, one far above those before it, or one that stays."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from drivetrain_workers.spec import EarlyStopSpec, GuardSpec

_ENOUGH = 16  # losses before which nothing is called a spike
_TO_SIGMA = 1.4826  # of a normal distribution, from the median absolute deviation
_LEAST_SPREAD = 0.01  # of the median: what is flatter than this has no spikes worth the name


@dataclass(frozen=True)
class Alarm:
    """What is wrong with a step.

    Attributes:
        kind: ``non_finite`` or ``spike``: keys of `GuardSpec` that say what follows.
    """

    kind: str
    detail: str


class LossGuard:
    """Watches the losses of a run. All ranks see the same ones, and come to the same conclusion.

    Args:
        spec: of the job.
        losses: before the first step to be checked, oldest first.
    """

    def __init__(self, spec: GuardSpec, losses: Iterable[float]) -> None:
        self._spec = spec
        self._losses = deque((loss for loss in losses if math.isfinite(loss)), maxlen=spec.window)

    @property
    def losses(self) -> tuple[float, ...]:
        """Those that the next one is compared with, oldest first."""
        return tuple(self._losses)

    def check(self, loss: float, gradient_norm: float) -> Alarm | None:
        """Take in one step's figures."""
        if not math.isfinite(loss + gradient_norm):
            return Alarm("non_finite", f"loss {loss}, gradient norm {gradient_norm}")
        score = self._score(loss)
        if score > self._spec.spike_score:
            return Alarm("spike", f"loss {loss:.4f} lies {score:.1f} deviations above the median of those before it")
        self._losses.append(loss)  # a spike is no measure for others
        return None

    def _score(self, loss: float) -> float:
        """Robust z-score (Iglewicz and Hoaglin 1993)."""
        if len(self._losses) < min(_ENOUGH, self._spec.window):
            return 0.0
        middle = median(self._losses)
        spread = _TO_SIGMA * median(abs(value - middle) for value in self._losses)
        return (loss - middle) / max(spread, _LEAST_SPREAD * abs(middle), 1e-12)


class EarlyStop:
    """Decides when the newest evaluations have brought nothing better; see `BestSpec.score`.

    Args:
        spec: of the job; without it no run stops early.
        best, since_best: the attributes, of the evaluations so far.

    Attributes:
        best: score of the best evaluation (lower is better); None where there was none.
        since_best: evaluations since that one.
    """

    def __init__(self, spec: EarlyStopSpec | None, best: float | None = None, since_best: int = 0) -> None:
        self._spec, self.best, self.since_best = spec, best, since_best

    def add(self, score: float) -> None:
        """Take in one evaluation."""
        best = math.inf if self.best is None else self.best
        if score < best - (self._spec.min_delta if self._spec else 0.0):
            self.best, self.since_best = score, 0
        else:
            self.since_best += 1

    @property
    def is_due(self) -> bool:
        """Whether the run should end."""
        return self._spec is not None and self.since_best >= self._spec.patience
