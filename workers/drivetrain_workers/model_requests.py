"""Asking for something that needs the trained model, from a process that must not import torch."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass

from drivetrain_workers.errors import CheckpointError


@dataclass(frozen=True)
class GenerateRequest:
    """What to generate from; ``seed`` makes the answer repeatable."""

    run_folder: str
    dataset_folder: str
    prompt: str
    max_tokens: int = 64
    temperature: float = 0.8
    top_k: int = 40
    seed: int = 0


@dataclass(frozen=True)
class ExportRequest:
    """Which weights to write where; the newest valid checkpoint's where ``step`` is None."""

    run_folder: str
    dataset_folder: str
    target: str
    step: int | None = None


_MODULES = {GenerateRequest: "drivetrain_workers.generate", ExportRequest: "drivetrain_workers.export"}


def ask(request: GenerateRequest | ExportRequest) -> str:
    """Generated text, prompt included; or the path of what was exported.

    Raises:
        CheckpointError: there is no such checkpoint, or the model failed; with the reason.
    """
    command = [sys.executable, "-m", _MODULES[type(request)], json.dumps(asdict(request))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last_line = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise CheckpointError(f"the model of {request.run_folder} failed: {last_line}")
    answer: dict[str, str] = json.loads(done.stdout.strip().splitlines()[-1])
    if "error" in answer:
        raise CheckpointError(answer["error"])
    return answer["answer"]
