"""Pictures from a normal distribution around each class's mean, in the directions in which its pictures differ."""

from __future__ import annotations

import numpy as np
import torch
from distance import told_apart
from drivetrain_workers.assessment.splits import Splits

_COMPONENTS, _ASSESSED = 60, 500


def gaussian(splits: Splits) -> dict[str, float]:
    """How well its pictures are told from held-out ones."""
    from sklearn.decomposition import PCA

    train, labels = _flat(splits.train["image"]), np.asarray(splits.train["label"])[:, 0]
    real, wanted = (
        _flat(splits.evaluation["image"])[:_ASSESSED],
        np.asarray(splits.evaluation["label"])[:_ASSESSED, 0],
    )
    random, made = np.random.default_rng(0), np.empty_like(real)
    for label in np.unique(wanted):
        method = PCA(_COMPONENTS, random_state=0).fit(train[labels == label])
        own = wanted == label
        drawn = random.normal(size=(own.sum(), _COMPONENTS)) * np.sqrt(method.explained_variance_)
        made[own] = method.inverse_transform(drawn).clip(-1, 1)
    return {"told_apart": float(told_apart(torch.from_numpy(made), torch.from_numpy(real)).float().mean())}


def _flat(images: object) -> np.ndarray:
    pictures = np.asarray(images)
    return pictures.reshape(len(pictures), -1).astype(np.float32) / 127.5 - 1
