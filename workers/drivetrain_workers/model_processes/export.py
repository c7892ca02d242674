"""Export of weights: safetensors, and a Hugging Face folder where the model is one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from drivetrain_workers.model_processes.requests import ExportRequest
from drivetrain_workers.model_processes.trained import Trained, load_trained, print_answer


def export(request: ExportRequest) -> str:
    """Write ``model.safetensors`` with the origin in its metadata into the target folder; returns the folder.

    A model that has ``save_pretrained`` writes itself, so that ``from_pretrained`` finds all files.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    trained = load_trained(request.run_folder, request.dataset_folder, request.step)
    target = Path(request.target)
    target.mkdir(parents=True, exist_ok=True)
    save_pretrained: Any = getattr(trained.model, "save_pretrained", None)
    if save_pretrained:
        save_pretrained(str(target), safe_serialization=True)
        (target / "drivetrain.json").write_text(json.dumps(_origin(request, trained), indent=1))
    else:
        # Cloned, because tied parameters have several names, and safetensors stores no memory twice.
        tensors = {name: tensor.clone().contiguous() for name, tensor in trained.model.state_dict().items()}
        save_file(tensors, target / "model.safetensors", metadata=_origin(request, trained))
    return str(target)


def _origin(request: ExportRequest, trained: Trained) -> dict[str, str]:
    return {
        "format": "pt",
        "run": Path(request.run_folder).name,
        "step": str(trained.checkpoint.step),
        "dataset": f"{trained.dataset.manifest.name}/{trained.dataset.manifest.version}",
    }


if __name__ == "__main__":
    print_answer(ExportRequest, export)
