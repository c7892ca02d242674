"""Text from a language model, one token after another."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from drivetrain_pipelines.prepare.tokenizer import END_OF_TEXT
from tokenizers import Tokenizer

_COLDEST = 1e-6  # temperature: the likeliest token always


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: of the ``top_k`` likeliest, less sharply the higher the ``temperature``."""

    max_tokens: int
    temperature: float
    top_k: int
    seed: int


@torch.no_grad()
def generate(model: torch.nn.Module, tokenizer: Tokenizer, prompt: str, length: int, sampling: Sampling) -> list[str]:
    """The prompt and what the model makes of it, up to the end of the text.

    A model whose ``forward`` has a parameter ``cache`` is given each token once: it keeps in that dictionary, empty at
    first, what later tokens need of earlier ones (keys and values of attention). Beyond ``length`` tokens the window
    moves, and is computed anew for each token, with or without.

    Args:
        model: tokens int64 ``[rows, length]`` to logits ``[rows, length, vocab]``.
        length: tokens that the model sees at once.

    Returns:
        Prompt and continuation.
    """
    random = torch.Generator().manual_seed(sampling.seed)
    end = tokenizer.token_to_id(END_OF_TEXT)
    start = tokenizer.encode(prompt, add_special_tokens=False).ids or [end or 0]
    tokens = torch.tensor([start])
    next_logits = _Cached(model, length) if _keeps(model) else _Recomputed(model, length)
    for _ in range(sampling.max_tokens):
        logits = next_logits(tokens).float() / max(sampling.temperature, _COLDEST)
        values, candidates = logits.topk(min(sampling.top_k, logits.numel()))
        chosen = candidates[torch.multinomial(values.softmax(-1), 1, generator=random)]
        if int(chosen) == end:
            break
        tokens = torch.cat([tokens, chosen.view(1, 1)], dim=1)
    said = tokens[0].tolist()
    return [tokenizer.decode(part) for part in (said[: len(start)], said[len(start) :])]


def _keeps(model: torch.nn.Module) -> bool:
    return "cache" in inspect.signature(model.forward).parameters


class _Recomputed:
    """Logits of the next token, from the whole window each time."""

    def __init__(self, model: torch.nn.Module, length: int) -> None:
        self._model, self._length = model, length

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._model(tokens[:, -self._length :])
        return logits[0, -1]


class _Cached(_Recomputed):
    """The same from what has been kept of the tokens before, as long as all are in the window."""

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
