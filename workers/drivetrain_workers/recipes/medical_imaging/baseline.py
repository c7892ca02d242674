"""A random forest (Breiman 2001) on simple measurements: colours of the nucleus and of its surroundings."""

from __future__ import annotations

from typing import Any

import numpy as np
from drivetrain_workers.assessment.scores import Outcomes, scores
from drivetrain_workers.assessment.splits import Splits


def random_forest(splits: Splits) -> dict[str, float]:
    """Compute scores on the eval split."""
    from sklearn.ensemble import RandomForestClassifier

    method = RandomForestClassifier(300, min_samples_leaf=3, random_state=0, n_jobs=1)
    method.fit(_measured(splits.train["image"]), np.asarray(splits.train["label"])[:, 0])
    targets = np.asarray(splits.evaluation["label"])[:, 0]
    probabilities = method.predict_proba(_measured(splits.evaluation["image"]))
    return scores(Outcomes.of(probabilities, targets, np.zeros(len(targets), int)))


def _measured(images: Any) -> np.ndarray[Any, Any]:
    """Compute mean, spread and quantiles of each colour, in the middle and in total; float ``[rows, 36]``."""
    patches = np.asarray(images).astype(np.float32)
    parts = []
    for side in (8, 20, patches.shape[1]):
        edge = (patches.shape[1] - side) // 2
        inner = patches[:, edge : edge + side, edge : edge + side].reshape(len(patches), -1, 3)
        parts += [inner.mean(1), inner.std(1), *np.quantile(inner, (0.1, 0.9), axis=1)]
    return np.concatenate(parts, axis=1)
