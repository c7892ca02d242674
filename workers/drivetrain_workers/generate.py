"""Text from a trained checkpoint, without DeepSpeed: for `drivetrain predict` and the sample at the end of a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from drivetrain_pipelines.errors import DrivetrainError
from drivetrain_pipelines.prepare.tokenizer import END_OF_TEXT, TOKENIZER_FILE, load_tokenizer
from drivetrain_pipelines.spec import DataSpec
from drivetrain_pipelines.stream.dataset import open_dataset

from drivetrain_workers.checkpoints.load import Checkpoint
from drivetrain_workers.checkpoints.store import newest_valid
from drivetrain_workers.errors import CheckpointError
from drivetrain_workers.generate_request import GenerateRequest
from drivetrain_workers.model import build_model
from drivetrain_workers.run_folder import RunFolder


@torch.no_grad()
def generate(request: GenerateRequest) -> str:
    """Sample a continuation of the prompt; returns prompt and continuation.

    Raises:
        CheckpointError: the run has no valid checkpoint.
    """
    folder = RunFolder(Path(request.run_folder))
    found, problems = newest_valid(folder.checkpoints)
    if found is None:
        raise CheckpointError("the run has no checkpoint to generate from" + "".join(f"; {p}" for p in problems))
    job = folder.resolved()
    dataset = open_dataset(request.dataset_folder, DataSpec(**job["data"]))
    tokenizer = load_tokenizer(dataset.folder.read(TOKENIZER_FILE), TOKENIZER_FILE)
    length = job["data"]["sequence_length"]
    vocab_size = int(dataset.manifest.statistics["vocab_size"])
    facts = {"vocab_size": vocab_size, "sequence_length": length}
    model = build_model(job["model"], str(folder.code), facts, job["seed"]).eval()
    trained = Checkpoint(found).weights()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in trained:
            tensor.data.copy_(trained[name])

    random = torch.Generator().manual_seed(request.seed)
    start = tokenizer.encode(request.prompt).ids or [tokenizer.token_to_id(END_OF_TEXT) or 0]
    tokens = torch.tensor([start])
    for _ in range(request.max_tokens):
        logits = model(tokens[:, -length:])[0, -1].float() / max(request.temperature, 1e-6)
        values, candidates = logits.topk(min(request.top_k, logits.numel()))
        chosen = candidates[torch.multinomial(values.softmax(-1), 1, generator=random)]
        tokens = torch.cat([tokens, chosen.view(1, 1)], dim=1)
    return tokenizer.decode(tokens[0].tolist())


def main(request_json: str) -> None:
    """Print the generated text as one line of JSON, or the error."""
    try:
        answer = {"text": generate(GenerateRequest(**json.loads(request_json)))}
    except DrivetrainError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
