"""A small GPT (Radford et al. 2019): pre-norm Transformer decoder with tied embeddings."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

Cache = dict[str, torch.Tensor]


class Block(nn.Module):
    """Attention and feed-forward, each with pre-norm and a residual connection.

    Args:
        width: size of the residual stream.
        heads: attention heads; divide ``width``.
        dropout: share of activations dropped during training.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        """Map ``[rows, length, width]`` to the same shape; with a cache, ``x`` follows the positions in the cache."""
        rows, length, width = x.shape
        qkv = self.qkv(self.norm_1(x)).view(rows, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if cache is not None:
            if "k" in cache:
                k, v = torch.cat([cache["k"], k], dim=2), torch.cat([cache["v"], v], dim=2)
            cache |= {"k": k, "v": v}
        first = k.shape[2] == length  # otherwise new tokens attend to all previous ones
        seen = (
            None
            if first
            else torch.ones(length, k.shape[2], dtype=torch.bool, device=x.device).tril(k.shape[2] - length)
        )
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, seen, dropout_p=dropout, is_causal=first)
        x = x + F.dropout(self.out(attended.transpose(1, 2).reshape(rows, length, width)), dropout)
        return x + F.dropout(self.down(F.gelu(self.up(self.norm_2(x)))), dropout)


class GPT(nn.Module):
    """Tokens ``[rows, length]`` to logits ``[rows, length, vocab]``."""

    def __init__(
        self, vocab_size: int, sequence_length: int, layers: int, width: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(sequence_length, width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:  # residual outputs are scaled down with depth, as in GPT-2
                deep = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if deep else 0.02)

    def forward(self, tokens: torch.Tensor, cache: dict[int, Cache] | None = None) -> torch.Tensor:
        """Compute next-token logits at every position; the output layer shares the token embedding.

        Args:
            cache: keys and values of previous tokens, by block; extended while text is generated.
        """
        before = cache[0]["k"].shape[2] if cache else 0
        positions = torch.arange(before, before + tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.positions(positions)
        for number, block in enumerate(self.blocks):
            x = block(x) if cache is None else block(x, cache.setdefault(number, {}))
        return F.linear(self.norm(x), self.tokens.weight)


def gpt(
    vocab_size: int, sequence_length: int, layers: int = 4, width: int = 192, heads: int = 6, dropout: float = 0.0
) -> GPT:
    """Build a GPT; ``vocab_size`` and ``sequence_length`` come from the prepared dataset."""
    return GPT(vocab_size, sequence_length, layers, width, heads, dropout)
