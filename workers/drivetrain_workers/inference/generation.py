"""Text generation with a language model, one token at a time."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from drivetrain_pipelines.prepare.tokenizer import TextEncoder
from drivetrain_pipelines.spec import TokenizerSpec
from tokenizers import Tokenizer

_MIN_TEMPERATURE = 1e-6  # lowest temperature: always the most likely token


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: from the ``top_k`` most likely, more evenly the higher the ``temperature``.

    Attributes:
        stop: texts before which the continuation ends.
    """

    max_tokens: int
    temperature: float
    top_k: int
    seed: int
    stop: tuple[str, ...] = ()


@torch.no_grad()
def generate(
    model: torch.nn.Module,
    tokenizer: Tokenizer,
    prompt: str,
    length: int,
    sampling: Sampling,
    spec: TokenizerSpec | None = None,
) -> list[str]:
    """Return the prompt and its continuation by the model, up to a token that ends a text or a turn, or a stop text.

    A model whose ``forward`` has a parameter ``cache`` receives each token once: in that dictionary, empty at first, it
    keeps what later tokens need of earlier ones (keys and values of attention). Beyond ``length`` tokens the window
    moves, and is computed again for each token, with or without a cache.

    Args:
        model: tokens int64 ``[rows, length]`` to logits ``[rows, length, vocab]``.
        length: tokens that the model sees at a time.
        spec: the job's settings of the tokenizer.

    Returns:
        Prompt and continuation.
    """
    random = torch.Generator().manual_seed(sampling.seed)
    encoder = TextEncoder(tokenizer, spec)
    named = {id_ for stop in sampling.stop if (id_ := tokenizer.token_to_id(stop)) is not None}  # decoding skips them
    ends = named.union(encoder.ends)
    start = encoder.prompt(prompt) or [min(encoder.ends, default=0)]
    tokens = torch.tensor([start])
    next_logits = _Cached(model, length) if _has_cache(model) else _Recomputed(model, length)
    for _ in range(sampling.max_tokens):
        logits = next_logits(tokens).float() / max(sampling.temperature, _MIN_TEMPERATURE)
        values, candidates = logits.topk(min(sampling.top_k, logits.numel()))
        chosen = candidates[torch.multinomial(values.softmax(-1), 1, generator=random)]
        if int(chosen) in ends:
            break
        tokens = torch.cat([tokens, chosen.view(1, 1)], dim=1)
        if sampling.stop:
            said, continuation = _decoded(tokenizer, tokens[0].tolist(), len(start))
            if (at := _first(continuation, sampling.stop)) is not None:
                return [said, continuation[:at]]
    return [*_decoded(tokenizer, tokens[0].tolist(), len(start))]


def _decoded(tokenizer: Tokenizer, ids: list[int], first: int) -> tuple[str, str]:
    """Return the texts before and from a token on; some tokenizers drop a space at the begin of what they decode."""
    prompt, whole = tokenizer.decode(ids[:first]), tokenizer.decode(ids)
    return prompt, whole.removeprefix(prompt) if whole.startswith(prompt) else tokenizer.decode(ids[first:])


def _first(text: str, stops: Sequence[str]) -> int | None:
    """Return where the first of the stop texts begins; None without one."""
    return min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)


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
