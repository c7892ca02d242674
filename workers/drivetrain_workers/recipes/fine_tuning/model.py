"""A pre-trained encoder with a new last layer. All of it is trained, or only low-rank adapters (LoRA)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModel

Mode = Literal["full", "lora", "scratch"]
_RANK = 8  # of LoRA's matrices (Hu et al. 2022)


class Classifier(nn.Module):
    """Tokens int64 ``[rows, length]``, with 0 as padding, to logits ``[rows, classes]``."""

    def __init__(self, encoder: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Compute logits from the mean over a text's tokens."""
        used = (tokens != 0).long()
        states = self.encoder(input_ids=tokens, attention_mask=used).last_hidden_state
        mean = (states * used[..., None]).sum(1) / used.sum(1, keepdim=True).clamp(min=1)
        return self.head(F.normalize(mean) * mean.shape[1] ** 0.5)


def classifier(pretrained: str, classes: int, mode: Mode = "full") -> Classifier:
    """Build the classifier from ``pretrained``, a folder with ``config.json`` and ``model.safetensors``."""
    config = AutoConfig.from_pretrained(pretrained)
    encoder = AutoModel.from_config(config, add_pooling_layer=False, attn_implementation="eager")
    if mode != "scratch":
        encoder.load_state_dict(load_file(Path(pretrained) / "model.safetensors"), strict=False)
    if mode == "lora":
        config_lora = LoraConfig(r=_RANK, lora_alpha=2 * _RANK, target_modules=["query", "value"])
        encoder = inject_adapter_in_model(config_lora, encoder)
    return Classifier(encoder, config.hidden_size, classes)
