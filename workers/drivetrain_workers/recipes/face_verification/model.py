"""SFace with an additive-margin softmax (Wang et al. 2018) over the people that it is trained on."""

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

_SCALE, _MARGIN = 24.0, 0.2  # of cosines, in the loss
_SAME_FROM, _STEEPNESS = 0.363, 12.0  # SFace's own threshold of the cosine, and how sure to be beyond it
_IGNORED = -100


class Faces(nn.Module):
    """Faces uint8 ``[rows, 112, 112, 3]`` to vectors ``[rows, 128]`` of length 1."""

    def __init__(self, network: nn.Module, people: int, width: int = 128) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()  # a few faces would spoil what millions have taught
        self.adapted = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.adapted.weight)  # begins as what was pre-trained
        self.people = nn.Parameter(torch.randn(people, width))

    def train(self, mode: bool = True) -> Faces:
        """The statistics of the batch norms stay as they came."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        """Vectors; those of one person point in nearly the same direction."""
        vectors = self.pretrained(faces)
        return F.normalize(vectors + self.adapted(vectors))

    def pretrained(self, faces: torch.Tensor) -> torch.Tensor:
        """Vectors as they were before."""
        return F.normalize(self.network(faces.permute(0, 3, 1, 2).float()))


def sface(weights: str, people: int) -> Faces:
    """Build one from ``weights``, an ONNX file; ``people`` is more than the largest number of a person."""
    return Faces(from_onnx(weights), people)


def loss(model: nn.Module, batch: dict[str, torch.Tensor], context: TrainContext) -> torch.Tensor:
    """Cross-entropy of who it is; of held-out people, whom it cannot know, of whether pairs are one person."""
    vectors, labels = model(batch["image"]), batch["label"][:, 0]
    if not context.training:
        return _pair_loss(vectors, labels)
    known: Any = getattr(model, "module", model).people  # DeepSpeed's engine has the model inside
    cosines = vectors @ F.normalize(known).T
    margin = _MARGIN * F.one_hot(labels, len(known))
    return F.cross_entropy(_SCALE * (cosines - margin), labels)


def outcomes(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, object]:
    """A decision for each pair of pictures: the same person or not."""
    vectors, labels = model(batch["image"]), batch["label"][:, 0]
    same = _same(vectors)
    alike = vectors[:1] @ vectors.T
    return {
        "probabilities": torch.stack([1 - same, same], -1),
        "targets": _targets(labels),
        "slice": [f"person {number}" for number in labels.tolist()],
        "score": alike[0],  # to the first face: what makes the others look like it
    }


def predict(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, object]:
    """The vector of a face. Two of them belong to one person when their product is more than 0.363."""
    return {"vector": [[round(value, 4) for value in row] for row in model(batch["image"]).tolist()]}


def assess(model: Faces, splits: Splits) -> dict[str, float]:
    """Of all pairs of held-out pictures, now and before: the area under the ROC curve and the equal error rate."""
    labels = np.asarray(splits.evaluation["label"])[:, 0]
    found = {"people": float(len(set(labels.tolist())))}
    for when, function in (("", model), ("_before", model.pretrained)):
        with torch.no_grad():
            vectors = torch.cat([function(batch["image"]) for batch in batches(splits.evaluation)])
        found |= {f"{name}{when}": value for name, value in verification((vectors @ vectors.T).numpy(), labels).items()}
    return found


def verification(similarity: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> dict[str, float]:
    """``auc``, and ``eer``, where as many strangers pass as friends are refused; of similarities ``[rows, rows]``."""
    from sklearn.metrics import roc_auc_score, roc_curve

    first, second = np.triu_indices(len(labels), 1)
    same, alike = labels[first] == labels[second], similarity[first, second]
    wrong, right, _ = roc_curve(same, alike)
    place = np.argmin(np.abs(wrong - (1 - right)))
    return {"auc": float(roc_auc_score(same, alike)), "eer": float((wrong[place] + 1 - right[place]) / 2)}


def _same(vectors: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(_STEEPNESS * (vectors @ vectors.T - _SAME_FROM))


def _targets(labels: torch.Tensor) -> torch.Tensor:
    """1 for pairs of one person; each pair once, and no picture with itself."""
    same = (labels[:, None] == labels[None, :]).long()
    return same.masked_fill(torch.ones_like(same).tril() > 0, _IGNORED)


def _pair_loss(vectors: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    same, targets = _same(vectors), _targets(labels)
    asked = targets != _IGNORED
    if not asked.any():
        return vectors.sum() * 0
    return F.binary_cross_entropy(same[asked], targets[asked].float())
