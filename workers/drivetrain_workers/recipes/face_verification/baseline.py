"""Eigenfaces (Turk and Pentland 1991): faces as sums of the directions in which pictures differ most."""

from __future__ import annotations

import numpy as np
from drivetrain_workers.assessment.splits import Splits
from model import equal_error_rate

_LEFT_OUT, _COMPONENTS = 3, 40  # the first ones are mostly light


def eigenfaces(splits: Splits) -> dict[str, float]:
    """Area under the ROC curve and equal error rate of all pairs of held-out pictures."""
    from sklearn.decomposition import PCA
    from sklearn.metrics import roc_auc_score

    train, held_out = (
        np.asarray(columns["image"]).mean(-1).reshape(len(columns["image"]), -1)
        for columns in (splits.train, splits.evaluation)
    )
    method = PCA(min(_COMPONENTS, len(train)), whiten=True, random_state=0).fit(train)
    vectors = method.transform(held_out)[:, _LEFT_OUT:]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels, similarity = np.asarray(splits.evaluation["label"])[:, 0], vectors @ vectors.T
    first, second = np.triu_indices(len(labels), 1)
    area = roc_auc_score(labels[first] == labels[second], similarity[first, second])
    return {"auc": float(area), "eer": equal_error_rate(similarity, labels)}
