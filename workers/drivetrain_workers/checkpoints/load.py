"""Loading: copies the overlaps between the saved state and the state that this rank owns."""

from __future__ import annotations

import random
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from drivetrain_pipelines.storage.json_files import JsonObject

from drivetrain_workers.checkpoints.manifest import Manifest, RankIndex
from drivetrain_workers.checkpoints.store import rank_file, read_index, read_manifest
from drivetrain_workers.engine.deepspeed_internals import (
    before_overwriting,
    flat_states,
    missed_updates,
    parameter_shapes,
    publish_weights,
    replicated_tensors,
)
from drivetrain_workers.engine.flat_state import WEIGHTS
from drivetrain_workers.errors import CheckpointError
from drivetrain_workers.modeling.model import temporary_buffers
from drivetrain_workers.modeling.model_flags import ModelFlags
from drivetrain_workers.protocol.step_record import StepRecord


@dataclass(frozen=True)
class _Piece:
    start: int
    length: int
    file: Path
    offset: int


class Checkpoint:
    """A committed checkpoint. Verify it first: `drivetrain_workers.checkpoints.store.verify`.

    Files are read, not mapped: every byte is needed once, and page faults cost several times as much as a read.

    Args:
        folder: folder of its files.
        manifest: its manifest; read from ``folder`` by default.
        indexes: indexes by rank; read from ``folder`` by default.
        unsaved: records of steps that the state contains and the ledger does not.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest | None = None,
        indexes: dict[int, RankIndex] | None = None,
        unsaved: Sequence[StepRecord] = (),
    ) -> None:
        self.folder, self.manifest, self.unsaved = folder, manifest or read_manifest(folder), unsaved
        self.indexes = indexes or {rank: read_index(folder, rank) for rank in range(self.manifest.world_size)}
        self._pieces: dict[tuple[str, str], list[_Piece]] = {}
        for rank, index in self.indexes.items():
            for fragment in index.contents.fragments:
                piece = _Piece(fragment.start, fragment.length, folder / rank_file(rank), fragment.offset)
                self._pieces.setdefault((fragment.parameter, fragment.kind), []).append(piece)

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.manifest.step

    @property
    def kinds(self) -> set[str]:
        """`WEIGHTS` and the names of the optimizer's moments."""
        return {kind for _, kind in self._pieces}

    def moments(self, parameters: set[str]) -> set[str]:
        """Return the names of the optimizer's moments of some parameters; parameter groups may differ in them."""
        return {kind for parameter, kind in self._pieces if parameter in parameters} - {WEIGHTS}

    def read(self, parameter: str, kind: str, start: int, out: torch.Tensor) -> None:
        """Fill ``out`` (1-D, fp32) with elements ``start ..`` of a parameter's weights or moment.

        Raises:
            CheckpointError: the checkpoint does not contain all of them.
        """
        missing = out.numel()
        for piece in self._pieces.get((parameter, kind), ()):
            low, high = max(start, piece.start), min(start + out.numel(), piece.start + piece.length)
            if low < high:
                offset = piece.offset + 4 * (low - piece.start)
                source = np.fromfile(piece.file, np.float32, count=high - low, offset=offset)
                out[low - start : high - start].copy_(torch.from_numpy(source))
                missing -= high - low
        if missing:
            raise CheckpointError(f"{self.folder.name} lacks {missing} of {out.numel()} elements of {parameter}/{kind}")

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the full fp32 weights of every trained parameter, and the replicated tensors of rank 0, by name."""
        tensors = {}
        for name, shape in self.manifest.shapes.items():
            flat = torch.empty(int(np.prod(shape, dtype=np.int64)))
            self.read(name, WEIGHTS, 0, flat)
            tensors[name] = flat.view(shape)
        return {**tensors, **self.replicated(0)}

    def replicated(self, rank: int) -> dict[str, torch.Tensor]:
        """Return buffers and frozen parameters as rank ``rank`` saved them."""
        tensors = {}
        for name, dtype, shape, offset in self.indexes[rank].contents.replicated:
            kind = getattr(torch, dtype)
            size = int(np.prod(shape, dtype=np.int64)) * torch.empty(0, dtype=kind).element_size()
            raw = torch.from_numpy(np.fromfile(self.folder / rank_file(rank), np.uint8, count=size, offset=offset))
            tensors[name] = raw.view(kind).view(shape)
        return tensors


def restore(engine: Any, checkpoint: Checkpoint, rank: int, world_size: int) -> None:
    """Load a checkpoint's state into a new engine of any world size and ZeRO stage.

    Raises:
        CheckpointError: the checkpoint belongs to another model.
    """
    same_world = checkpoint.manifest.world_size == world_size
    own = checkpoint.indexes[rank if same_world else 0].contents
    ours, temporary = replicated_tensors(engine), temporary_buffers(engine.module)
    saved = checkpoint.replicated(rank if same_world else 0)
    replicated = {name: tensor for name, tensor in saved.items() if name not in temporary}
    saved_shapes = checkpoint.manifest.shapes | {name: list(tensor.shape) for name, tensor in replicated.items()}
    own_shapes = parameter_shapes(engine) | {name: list(tensor.shape) for name, tensor in ours.items()}
    check_shapes(checkpoint.folder.name, saved_shapes, own_shapes)
    missed_updates(engine).update(own.missed)
    before_overwriting(engine)
    for state in flat_states(engine):
        group = own.groups[state.group_index]
        state.group.update(group.hyper)
        state.create(checkpoint.moments({span.parameter for span in state.spans}), group.scalars)
        for kind, tensor in state.tensors():
            for span in state.spans:
                checkpoint.read(span.parameter, kind, span.start, tensor[span.at : span.at + span.length])
    publish_weights(engine)
    for name, tensor in replicated.items():
        ours[name].copy_(tensor)
    if own.flags:
        ModelFlags(**own.flags).apply(engine.module)
    engine.global_steps = checkpoint.step
    engine.global_samples = checkpoint.manifest.position
    engine.lr_scheduler.last_epoch = checkpoint.step  # its whole state: the schedule is a function of the step
    if same_world:
        restore_rng(own.rng)


def check_shapes(checkpoint: str, saved: dict[str, list[int]], model: dict[str, list[int]]) -> None:
    """Check that a checkpoint has the tensors of a model, by name and shape.

    Raises:
        CheckpointError: it belongs to another model; names the first difference.
    """
    wrong = next((name for name in sorted(saved.keys() | model.keys()) if saved.get(name) != model.get(name)), None)
    if wrong is not None:
        found, wanted = (
            f"has the shape {shapes[wrong]}" if wrong in shapes else "is missing" for shapes in (saved, model)
        )
        raise CheckpointError(f"{checkpoint} is of another model: {wrong} {found} in it, and {wanted} in the model")


def restore_rng(state: JsonObject) -> None:
    """Restore the result of `drivetrain_workers.checkpoints.snapshot.rng_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(_bytes(state["torch"]))
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state(_bytes(state["cuda"]))


def _bytes(text: str) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(b64decode(text), dtype=np.uint8).copy())
