"""Detection of bad training steps: a loss that is not finite, far above the previous ones, or no longer improving."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from drivetrain_workers.spec import EarlyStopSpec, GuardSpec

_MIN_LOSSES = 16  # losses that are needed before a spike can be detected
_MAD_TO_SIGMA = 1.4826  # of a normal distribution, from the median absolute deviation
_MIN_RELATIVE_SPREAD = 0.01  # relative to the median: smaller deviations are not spikes


@dataclass(frozen=True)
class Alarm:
    """A problem of a step.

    Attributes:
        kind: ``non_finite`` or ``spike``: keys of `GuardSpec` that define the action.
        fatal: the weights cannot be used any more.
    """

    kind: str
    detail: str
    fatal: bool = False


class LossGuard:
    """Watches the losses of a run. All ranks see the same losses and reach the same result.

    Args:
        spec: guard section of the job.
        losses: losses before the first step to check, oldest first.
    """

    def __init__(self, spec: GuardSpec, losses: Iterable[float]) -> None:
        self._spec = spec
        self._losses = deque((loss for loss in losses if math.isfinite(loss)), maxlen=spec.window)

    @property
    def losses(self) -> tuple[float, ...]:
        """Losses that the next one is compared with, oldest first."""
        return tuple(self._losses)

    def check(self, loss: float, gradient_norm: float | None, weights_finite: bool = True) -> Alarm | None:
        """Check the loss, the gradient norm and the updated weights of one step."""
        if not math.isfinite(loss + (gradient_norm or 0.0)):
            return Alarm("non_finite", f"loss {loss}, gradient norm {gradient_norm}", fatal=not weights_finite)
        if not weights_finite:
            return Alarm("non_finite", "a weight is NaN or infinite after the update", fatal=True)
        score = self._score(loss)
        if score > self._spec.spike_score:
            return Alarm("spike", f"loss {loss:.4f} is {score:.1f} deviations above the median of the previous ones")
        self._losses.append(loss)  # a spike must not influence later checks
        return None

    def _score(self, loss: float) -> float:
        """Compute the robust z-score (Iglewicz and Hoaglin 1993)."""
        if len(self._losses) < min(_MIN_LOSSES, self._spec.window):
            return 0.0
        middle = median(self._losses)
        spread = _MAD_TO_SIGMA * median(abs(value - middle) for value in self._losses)
        return (loss - middle) / max(spread, _MIN_RELATIVE_SPREAD * abs(middle), 1e-12)


class EarlyStop:
    """Decides whether evaluations have stopped improving; see `BestSpec.score`.

    Args:
        spec: section of the job; None: never stop early.
        best, since_best: initial values of the attributes.

    Attributes:
        best: score of the best evaluation (lower is better); None where there was none.
        since_best: number of evaluations since the best one.
    """

    def __init__(self, spec: EarlyStopSpec | None, best: float | None = None, since_best: int = 0) -> None:
        self._spec, self.best, self.since_best = spec, best, since_best

    def add(self, score: float) -> None:
        """Add the score of one evaluation."""
        best = math.inf if self.best is None else self.best
        if score < best - (self._spec.min_delta if self._spec else 0.0):
            self.best, self.since_best = score, 0
        else:
            self.since_best += 1

    @property
    def is_due(self) -> bool:
        """Whether the run should end."""
        return self._spec is not None and self.since_best >= self._spec.patience
