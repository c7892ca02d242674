"""Text from a trained checkpoint: for `drivetrain predict` and the sample at the end of a run."""

from __future__ import annotations

import json
import sys

import torch
from drivetrain_pipelines.prepare.tokenizer import END_OF_TEXT, TOKENIZER_FILE, load_tokenizer

from drivetrain_workers.model_requests import GenerateRequest
from drivetrain_workers.trained import load_trained, print_answer


@torch.no_grad()
def generate(request: GenerateRequest) -> str:
    """Sample a continuation of the prompt; returns prompt and continuation.

    Raises:
        CheckpointError: the run has no valid checkpoint.
    """
    trained = load_trained(request.run_folder, request.dataset_folder)
    tokenizer = load_tokenizer(trained.dataset.folder.read(TOKENIZER_FILE), TOKENIZER_FILE)
    length = trained.job["data"]["sequence_length"]
    random = torch.Generator().manual_seed(request.seed)
    start = tokenizer.encode(request.prompt).ids or [tokenizer.token_to_id(END_OF_TEXT) or 0]
    tokens = torch.tensor([start])
    for _ in range(request.max_tokens):
        logits = trained.model(tokens[:, -length:])[0, -1].float() / max(request.temperature, 1e-6)
        values, candidates = logits.topk(min(request.top_k, logits.numel()))
        chosen = candidates[torch.multinomial(values.softmax(-1), 1, generator=random)]
        tokens = torch.cat([tokens, chosen.view(1, 1)], dim=1)
    return tokenizer.decode(tokens[0].tolist())


if __name__ == "__main__":
    print_answer(lambda: generate(GenerateRequest(**json.loads(sys.argv[1]))))
