"""Eigenfaces (Turk and Pentland 1991): faces as linear combinations of principal components."""

from __future__ import annotations

import numpy as np
from drivetrain_workers.assessment.splits import Splits
from model import verification

_LEFT_OUT, _COMPONENTS = 3, 40  # the first components mostly represent the lighting


def eigenfaces(splits: Splits) -> dict[str, float]:
    """Compute the area under the ROC curve and the equal error rate of all pairs of held-out pictures."""
    from sklearn.decomposition import PCA

    train, held_out = (
        np.asarray(columns["image"]).mean(-1).reshape(len(columns["image"]), -1)
        for columns in (splits.train, splits.evaluation)
    )
    method = PCA(min(_COMPONENTS, len(train)), whiten=True, random_state=0).fit(train)
    vectors = method.transform(held_out)[:, _LEFT_OUT:]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return verification(vectors @ vectors.T, np.asarray(splits.evaluation["label"])[:, 0])
