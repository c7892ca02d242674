"""Pictures from a normal distribution for each class, over its principal components."""

from __future__ import annotations

import numpy as np
import torch
from distance import two_sample_accuracy
from drivetrain_workers.assessment.splits import Splits

_COMPONENTS, _ASSESSED = 60, 500


def gaussian(splits: Splits) -> dict[str, float]:
    """Compute the two-sample accuracy of its pictures and held-out ones."""
    from sklearn.decomposition import PCA

    train, labels = _flat(splits.train["image"]), np.asarray(splits.train["label"])[:, 0]
    real, wanted = (
        _flat(splits.evaluation["image"])[:_ASSESSED],
        np.asarray(splits.evaluation["label"])[:_ASSESSED, 0],
    )
    random, generated = np.random.default_rng(0), np.empty_like(real)
    for label in np.unique(wanted):
        method = PCA(_COMPONENTS, random_state=0).fit(train[labels == label])
        own = wanted == label
        drawn = random.normal(size=(own.sum(), _COMPONENTS)) * np.sqrt(method.explained_variance_)
        generated[own] = method.inverse_transform(drawn).clip(-1, 1)
    return {
        "two_sample_accuracy": float(
            two_sample_accuracy(torch.from_numpy(generated), torch.from_numpy(real)).float().mean()
        )
    }


def _flat(images: object) -> np.ndarray:
    pictures = np.asarray(images)
    return pictures.reshape(len(pictures), -1).astype(np.float32) / 127.5 - 1
