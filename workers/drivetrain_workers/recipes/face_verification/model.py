"""SFace with an additive-margin softmax (Wang et al. 2018) over the people in the training data."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from drivetrain_workers.assessment.judging import batches
from drivetrain_workers.assessment.splits import Splits
from drivetrain_workers.modeling.context import TrainContext
from network import from_onnx
from torch import nn

_SCALE, _MARGIN = 24.0, 0.2  # for cosines, in the loss
_THRESHOLD, _STEEPNESS = 0.363, 12.0  # SFace's threshold of the cosine, and the steepness of the confidence around it
_IGNORED = -100


class Faces(nn.Module):
    """Faces uint8 ``[rows, 112, 112, 3]`` to vectors ``[rows, 128]`` of length 1."""

    def __init__(self, network: nn.Module, people: int, width: int = 128) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()  # the few faces here would degrade the pre-trained weights
        self.adapted = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.adapted.weight)  # starts as the pre-trained network
        self.people = nn.Parameter(torch.randn(people, width))

    def train(self, mode: bool = True) -> Faces:
        """Keep the pre-trained network, with its batch-norm statistics, in evaluation mode."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        """Compute vectors; those of one person point in nearly the same direction."""
        vectors = self.pretrained(faces)
        return F.normalize(vectors + self.adapted(vectors))

    def pretrained(self, faces: torch.Tensor) -> torch.Tensor:
        """Compute the vectors of the pre-trained network."""
        return F.normalize(self.network(faces.permute(0, 3, 1, 2).float()))


def sface(weights: str, people: int) -> Faces:
    """Build the network from ``weights``, an ONNX file; ``people`` must exceed the largest number of a person."""
    return Faces(from_onnx(weights), people)


def loss(model: nn.Module, batch: dict[str, torch.Tensor], context: TrainContext) -> torch.Tensor:
    """Compute the cross-entropy over people; for held-out people, of whether pairs are the same person."""
    vectors, labels = model(batch["image"]), batch["label"][:, 0]
    if not context.training:
        return _pair_loss(vectors, labels)
    centers: Any = getattr(model, "module", model).people  # the model is inside DeepSpeed's engine
    cosines = vectors @ F.normalize(centers).T
    margin = _MARGIN * F.one_hot(labels, len(centers))
    return F.cross_entropy(_SCALE * (cosines - margin), labels)


def outcomes(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, object]:
    """Return a decision for each pair of pictures: the same person or not."""
    vectors, labels = model(batch["image"]), batch["label"][:, 0]
    same = _same(vectors)
    similarities = vectors[:1] @ vectors.T
    return {
        "probabilities": torch.stack([1 - same, same], -1),
        "targets": _targets(labels),
        "slice": [f"person {number}" for number in labels.tolist()],
        "score": similarities[0],  # similarity to the first face, to explain what other faces share with it
    }


def predict(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, object]:
    """Return the vector of a face. Two faces belong to one person when their dot product is above 0.363."""
    return {"vector": [[round(value, 4) for value in row] for row in model(batch["image"]).tolist()]}


def assess(model: Faces, splits: Splits) -> dict[str, float]:
    """Compute AUC and equal error rate over all pairs of held-out pictures, adapted and pre-trained (``_before``)."""
    labels = np.asarray(splits.evaluation["label"])[:, 0]
    found = {"people": float(len(set(labels.tolist())))}
    for when, function in (("", model), ("_before", model.pretrained)):
        with torch.no_grad():
            vectors = torch.cat([function(batch["image"]) for batch in batches(splits.evaluation)])
        found |= {f"{name}{when}": value for name, value in verification((vectors @ vectors.T).numpy(), labels).items()}
    return found


def verification(similarity: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> dict[str, float]:
    """Compute ``auc`` and ``eer`` (false accepts equal false rejects) from similarities ``[rows, rows]``."""
    from sklearn.metrics import roc_auc_score, roc_curve

    first, second = np.triu_indices(len(labels), 1)
    same, similarities = labels[first] == labels[second], similarity[first, second]
    wrong, right, _ = roc_curve(same, similarities)
    index = np.argmin(np.abs(wrong - (1 - right)))
    return {"auc": float(roc_auc_score(same, similarities)), "eer": float((wrong[index] + 1 - right[index]) / 2)}


def _same(vectors: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(_STEEPNESS * (vectors @ vectors.T - _THRESHOLD))


def _targets(labels: torch.Tensor) -> torch.Tensor:
    """Return 1 for pairs of one person and 0 for others; each pair once, and no picture with itself."""
    same = (labels[:, None] == labels[None, :]).long()
    return same.masked_fill(torch.ones_like(same).tril() > 0, _IGNORED)


def _pair_loss(vectors: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    same, targets = _same(vectors), _targets(labels)
    valid = targets != _IGNORED
    if not valid.any():
        return vectors.sum() * 0
    return F.binary_cross_entropy(same[valid], targets[valid].float())
