"""Verification after a resume that the state in memory is the saved one."""

from __future__ import annotations

import math
from typing import Any

from drivetrain_pipelines.storage.checksums import BLOCK_BYTES, block_digests

from drivetrain_workers.checkpoints.load import Checkpoint
from drivetrain_workers.checkpoints.manifest import Probe
from drivetrain_workers.checkpoints.snapshot import HostBuffer
from drivetrain_workers.errors import ResumeMismatchError

_TOLERANCE = 1e-3  # relative, of a loss at another world size or ZeRO stage; stages differ most in half precision


def verify_state(engine: Any, checkpoint: Checkpoint, rank: int, world_size: int) -> bool:
    """Compare the digests of weights and optimizer state in memory with those of this rank's file.

    Returns:
        False at another world size or ZeRO stage, where the layout is different.

    Raises:
        ResumeMismatchError: a block differs; names the parameters in it.
    """
    if not _same_layout(engine, checkpoint, world_size):
        return False
    copy = HostBuffer()
    copy.begin(engine, checkpoint.manifest.whole)
    copy.finish()
    index = checkpoint.indexes[rank]
    digests = block_digests(copy.content)
    wrong = [block for block, (a, b) in enumerate(zip(digests, index.xxh3, strict=True)) if a != b]
    if wrong:
        names = sorted(
            {
                f"{parameter}/{kind}"
                for parameter, kind, _, length, offset in index.contents.fragments
                if any(
                    offset < (block + 1) * BLOCK_BYTES and offset + 4 * length > block * BLOCK_BYTES for block in wrong
                )
            }
        )
        difference = f"blocks {wrong} of rank {rank} differ in memory, which hold parts of {', '.join(names[:5])}"
        raise ResumeMismatchError(checkpoint.folder.name, difference)
    return True


def verify_loss(engine: Any, checkpoint: Checkpoint, probe: Probe, loss: float, world_size: int) -> None:
    """Compare the loss of a batch with its loss when the checkpoint was saved: bit by bit in the same layout.

    Raises:
        ResumeMismatchError: the losses differ.
    """
    tolerance = 0.0 if _same_layout(engine, checkpoint, world_size) else _TOLERANCE
    if not math.isclose(loss, probe.loss, rel_tol=tolerance, abs_tol=0.0):
        difference = f"the loss of the batch before it is {loss!r} now and was {probe.loss!r} then"
        raise ResumeMismatchError(checkpoint.folder.name, difference)


def _same_layout(engine: Any, checkpoint: Checkpoint, world_size: int) -> bool:
    saved = checkpoint.manifest.world_size, checkpoint.manifest.zero_stage
    return saved == (world_size, engine.zero_optimization_stage())
