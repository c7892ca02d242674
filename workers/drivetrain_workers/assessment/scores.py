"""Scores of decisions. Each decision has probabilities, a correct answer, and the slice of its sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

BINS = 15  # of confidence
_MIN_SLICE_SIZE = 10
_EPSILON = 1e-12

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Outcomes:
    """Predictions and correct answers: an entry for each decision, which is a row, a pixel or a token.

    Attributes:
        confidence: probability of the class that the model chose.
        correct: whether the chosen class is the correct one.
        loss: negative logarithm of the correct class's probability, in nats.
        brier: squared distance of all probabilities from the correct answer (Brier 1950).
        positive: probability of class 1, where there are two.
        targets: the correct classes.
        slices: slices of the data, by name.
    """

    confidence: Floats
    correct: npt.NDArray[np.bool_]
    loss: Floats
    brier: Floats
    positive: Floats | None
    targets: npt.NDArray[np.int64]
    slices: npt.NDArray[Any]

    @classmethod
    def of(cls, probabilities: npt.NDArray[Any], targets: npt.NDArray[Any], slices: npt.NDArray[Any]) -> Outcomes:
        """Create outcomes from probabilities ``[decisions, classes]``, targets and names of slices ``[decisions]``."""
        every, targets = np.arange(len(targets)), targets.astype(np.int64)
        chosen, right = probabilities.argmax(1), probabilities[every, targets].astype(np.float64)
        squares = np.einsum("nc,nc->n", probabilities, probabilities, dtype=np.float64)
        return cls(
            confidence=probabilities[every, chosen].astype(np.float64),
            correct=chosen == targets,
            loss=-np.log(np.maximum(right, _EPSILON)),
            brier=squares - 2 * right + 1,
            positive=probabilities[:, 1].astype(np.float64) if probabilities.shape[1] == 2 else None,
            targets=targets,
            slices=slices,
        )

    @classmethod
    def concatenate(cls, parts: list[Outcomes]) -> Outcomes:
        """Concatenate outcomes."""
        positives = [part.positive for part in parts if part.positive is not None]
        return cls(
            np.concatenate([part.confidence for part in parts]),
            np.concatenate([part.correct for part in parts]),
            np.concatenate([part.loss for part in parts]),
            np.concatenate([part.brier for part in parts]),
            np.concatenate(positives) if len(positives) == len(parts) else None,
            np.concatenate([part.targets for part in parts]),
            np.concatenate([part.slices for part in parts]),
        )


@dataclass(frozen=True)
class SliceScore:
    """Scores on one slice of the data; ``loss`` is in nats, or the error that the job returned."""

    name: str
    decisions: int
    accuracy: float | None
    loss: float


def scores(found: Outcomes) -> dict[str, float]:
    """Compute accuracy, log loss, Brier score and calibration error; for two classes also sensitivity and the like."""
    values = {
        "accuracy": float(found.correct.mean()),
        "log_loss": float(found.loss.mean()),
        "brier": float(found.brier.mean()),
        "calibration_error": calibration_error(found),
    }
    both = found.positive is not None and 0 < found.targets.sum() < len(found.targets)
    if not both:
        return values
    from sklearn.metrics import roc_auc_score

    ill = found.targets == 1
    return values | {
        "auc": float(roc_auc_score(ill, found.positive)),
        "sensitivity": float(found.correct[ill].mean()),
        "specificity": float(found.correct[~ill].mean()),
    }


def calibration_error(found: Outcomes) -> float:
    """Compute the mean distance of confidence from accuracy over bins (Naeini et al. 2015); 0 is perfect."""
    return sum(count * abs(confidence - accuracy) for confidence, accuracy, count in reliability(found)) / len(
        found.correct
    )


def reliability(found: Outcomes) -> list[tuple[float, float, int]]:
    """Return (mean confidence, accuracy, decisions) of each bin of confidence that is not empty."""
    bins = np.minimum((found.confidence * BINS).astype(int), BINS - 1)
    members = [np.flatnonzero(bins == number) for number in range(BINS)]
    return [
        (float(found.confidence[own].mean()), float(found.correct[own].mean()), len(own)) for own in members if len(own)
    ]


def worst_slices(slices: npt.NDArray[Any], loss: Floats, correct: npt.NDArray[np.bool_] | None) -> list[SliceScore]:
    """Return the slices of the data with the highest loss first, without slices that are too small to assess."""
    found = []
    for name in np.unique(slices):
        own = slices == name
        if own.sum() >= _MIN_SLICE_SIZE:
            accuracy = None if correct is None else float(correct[own].mean())
            found.append(SliceScore(str(name), int(own.sum()), accuracy, float(loss[own].mean())))
    return sorted(found, key=lambda each: -each.loss)
