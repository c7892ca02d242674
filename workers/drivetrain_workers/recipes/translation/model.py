"""A GPT whose loss only counts the tokens after the separator."""

from __future__ import annotations

import random

import numpy as np
import torch
import torch.nn.functional as F
from data import SEPARATOR
from drivetrain_workers.assessment.splits import Splits
from drivetrain_workers.inference.generation import Sampling, generate
from drivetrain_workers.recipes.language_model.model import gpt
from measures import held_out, measures

__all__ = ["assess", "gpt", "loss", "outcomes", "weight"]

_SEPARATOR_ID = 1  # id of the separator; 0 is the end of text, which is also the padding
_IGNORED = -100
_ASSESSED = 200  # sentences


def loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Compute the mean cross-entropy of the Spanish tokens and of the end after them."""
    logits, targets = model(batch["tokens"][:, :-1]), _targets(batch)
    total = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=_IGNORED, reduction="sum")
    return total / (targets != _IGNORED).sum().clamp(min=1)


def weight(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Count the tokens that the loss is a mean over."""
    return (_targets(batch) != _IGNORED).sum()


def outcomes(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, object]:
    """Return a decision for each Spanish token, sliced by the length of the English sentence."""
    probabilities = model(batch["tokens"][:, :-1]).softmax(-1)
    targets = _targets(batch)
    english = (batch["tokens"] == _SEPARATOR_ID).int().argmax(1)
    slices = [f"English of {5 * (n // 5)} to {5 * (n // 5) + 4} tokens" for n in english.tolist()]
    right = probabilities.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    valid = targets != _IGNORED
    return {
        "probabilities": probabilities,
        "targets": targets,
        "slice": slices,
        "score": (right * valid).sum(1) / valid.sum(1).clamp(min=1),
    }


def assess(model: torch.nn.Module, splits: Splits) -> dict[str, float]:
    """Compute chrF and BLEU of greedy translations of held-out sentences."""
    assert splits.tokenizer
    references = held_out(splits)
    english = sorted(references)
    random.Random(0).shuffle(english)
    english = english[:_ASSESSED]
    length = np.asarray(splits.train["tokens"]).shape[1] - 1
    greedy = Sampling(max_tokens=length, temperature=0.0, top_k=1, seed=0)
    translations = [generate(model, splits.tokenizer, sentence + SEPARATOR, length, greedy)[1] for sentence in english]
    return measures(translations, [references[sentence] for sentence in english])


def _targets(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the next token of each position after the separator; of the padding only the first, the end of text."""
    tokens = batch["tokens"]
    spanish = (tokens[:, :-1] == _SEPARATOR_ID).cumsum(1) > 0
    return tokens[:, 1:].masked_fill(~spanish | (tokens[:, :-1] == 0), _IGNORED)
