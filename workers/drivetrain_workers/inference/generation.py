"""Text generation with a language model, one token at a time."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from drivetrain_pipelines.prepare.tokenizer import END_OF_TEXT
from tokenizers import Tokenizer

_MIN_TEMPERATURE = 1e-6  # lowest temperature: always the most likely token


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: from the ``top_k`` most likely, more evenly the higher the ``temperature``."""

    max_tokens: int
    temperature: float
    top_k: int
    seed: int


@torch.no_grad()
def generate(model: torch.nn.Module, tokenizer: Tokenizer, prompt: str, length: int, sampling: Sampling) -> list[str]:
    """Return the prompt and its continuation by the model, up to the end of the text.

    A model whose ``forward`` has a parameter ``cache`` receives each token once: in that dictionary, empty at first, it
    keeps what later tokens need of earlier ones (keys and values of attention). Beyond ``length`` tokens the window
    moves, and is computed again for each token, with or without a cache.

    Args:
        model: tokens int64 ``[rows, length]`` to logits ``[rows, length, vocab]``.
        length: tokens that the model sees at a time.

    Returns:
        Prompt and continuation.
    """
    random = torch.Generator().manual_seed(sampling.seed)
    end = tokenizer.token_to_id(END_OF_TEXT)
    start = tokenizer.encode(prompt, add_special_tokens=False).ids or [end or 0]
    tokens = torch.tensor([start])
    next_logits = _Cached(model, length) if _has_cache(model) else _Recomputed(model, length)
    for _ in range(sampling.max_tokens):
        logits = next_logits(tokens).float() / max(sampling.temperature, _MIN_TEMPERATURE)
        values, candidates = logits.topk(min(sampling.top_k, logits.numel()))
        chosen = candidates[torch.multinomial(values.softmax(-1), 1, generator=random)]
        if int(chosen) == end:
            break
        tokens = torch.cat([tokens, chosen.view(1, 1)], dim=1)
    outputs = tokens[0].tolist()
    return [tokenizer.decode(part) for part in (outputs[: len(start)], outputs[len(start) :])]


def _has_cache(model: torch.nn.Module) -> bool:
    return "cache" in inspect.signature(model.forward).parameters


class _Recomputed:
    """Logits of the next token, computed from the whole window each time."""

    def __init__(self, model: torch.nn.Module, length: int) -> None:
        self._model, self._length = model, length

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._model(tokens[:, -self._length :])
        return logits[0, -1]


class _Cached(_Recomputed):
    """Logits of the next token, computed with a cache while all tokens are in the window."""

    def __init__(self, model: torch.nn.Module, length: int) -> None:
        super().__init__(model, length)
        self._cache: dict[Any, Any] = {}
        self._seen = 0

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        if tokens.shape[1] > self._length:
            return super().__call__(tokens)
        logits: torch.Tensor = self._model(tokens[:, self._seen :], cache=self._cache)
        self._seen = tokens.shape[1]
        return logits[0, -1]
