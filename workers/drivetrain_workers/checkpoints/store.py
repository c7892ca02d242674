"""Checkpoint folders: naming, commit, validity, retention. Handles files, not tensors.

``step-00000100.g0003/`` contains per rank a raw file ``rank-00000.bin`` and its index ``rank-00000.json``; the folder
becomes a checkpoint when ``manifest.json`` appears in it. Because the generation is part of the name, a rank that was
wrongly considered dead never writes into the files of its successors.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from drivetrain_pipelines.errors import CorruptFileError
from drivetrain_pipelines.storage.checksums import verify_file
from drivetrain_pipelines.storage.json_files import fsync_folder, read_json, write_json

from drivetrain_workers.checkpoints.manifest import Manifest, RankIndex
from drivetrain_workers.errors import CheckpointError
from drivetrain_workers.records.run_folder import CheckpointId

MANIFEST = "manifest.json"
_COMMIT_TIMEOUT_S = 600.0
_COMMIT_POLL_INTERVAL_S = 0.01


def rank_file(rank: int) -> str:
    """Return the name of the raw state file of one rank."""
    return f"rank-{rank:05d}.bin"


def rank_index(rank: int) -> str:
    """Return the name of the index of `rank_file`, which is written after it."""
    return f"rank-{rank:05d}.json"


def committed(root: Path) -> list[CheckpointId]:
    """Return every folder that has a manifest, newest first."""
    found = [CheckpointId.parse(path.parent.name) for path in root.glob(f"*/{MANIFEST}")]
    return sorted((c for c in found if c), reverse=True)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a checkpoint. Raises CorruptFileError."""
    return Manifest.from_json(read_json(folder / MANIFEST))


def read_index(folder: Path, rank: int) -> RankIndex:
    """Read the index of a rank's file. Raises CorruptFileError."""
    return RankIndex.from_json(read_json(folder / rank_index(rank)))


def commit(folder: Path, manifest: Manifest) -> None:
    """Wait until the indexes of all ranks exist, then write the manifest: the commit point.

    Raises:
        CheckpointError: a rank did not finish within ten minutes.
    """
    deadline = time.monotonic() + _COMMIT_TIMEOUT_S
    missing = set(range(manifest.world_size))
    while missing:
        missing = {rank for rank in missing if not (folder / rank_index(rank)).exists()}
        if missing and time.monotonic() > deadline:
            raise CheckpointError(f"ranks {sorted(missing)} did not write their part of {folder.name}")
        if missing:
            time.sleep(_COMMIT_POLL_INTERVAL_S)
    fsync_folder(folder.parent)  # the folder itself must survive a power failure before older checkpoints are removed
    write_json(folder / MANIFEST, manifest.to_json())


def verify(folder: Path, part: int = 0, parts: int = 1) -> None:
    """Check the manifest, and every byte of one of ``parts`` of the files: indexes and raw files of every n-th rank.

    Raises:
        CorruptFileError: names the first file (and block) that differs from what was written.
    """
    for rank in range(part, read_manifest(folder).world_size, parts):
        verify_rank(folder, rank)


def verify_rank(folder: Path, rank: int) -> None:
    """Check index and raw file of a rank. Raises as `verify`."""
    index = read_index(folder, rank)
    verify_file(folder / rank_file(rank), index.bytes, index.xxh3)


def newest_valid(root: Path, step: int | None = None) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint (of ``step``, if given) with every byte valid, and the problems of newer ones."""
    problems: list[str] = []
    for checkpoint in (c for c in committed(root) if step in (None, c.step)):
        folder = checkpoint.folder(root)
        try:
            verify(folder)
            return folder, problems
        except CorruptFileError as error:
            problems.append(str(error))
    return None, problems


@dataclass(frozen=True)
class Description:
    """A committed checkpoint, for output.

    Attributes:
        problem: what is wrong with it; empty if nothing is.
    """

    folder: str
    step: int
    generation: int
    bytes: int
    world_size: int
    zero_stage: int
    eval_loss: float | None
    metrics: dict[str, float]
    problem: str


def describe_all(root: Path, verify_bytes: bool) -> Iterator[Description]:
    """Describe every committed checkpoint, newest first; with ``verify_bytes`` every byte is read."""
    for checkpoint in committed(root):
        folder = checkpoint.folder(root)
        size = sum(path.stat().st_size for path in folder.iterdir())
        world_size = zero_stage = 0
        evaluation, problem = None, ""
        try:
            manifest = read_manifest(folder)
            world_size, zero_stage, evaluation = manifest.world_size, manifest.zero_stage, manifest.evaluation
            if verify_bytes:
                verify(folder)
        except CorruptFileError as error:
            problem = str(error)
        loss, metrics = (evaluation.loss, evaluation.metrics) if evaluation else (None, {})
        numbers = checkpoint.step, checkpoint.generation, size, world_size, zero_stage
        yield Description(str(folder), *numbers, loss, metrics, problem)


def set_aside(root: Path, checkpoint: CheckpointId) -> None:
    """Rename a damaged checkpoint, so that it is neither loaded nor counted as kept."""
    folder = checkpoint.folder(root)
    target = folder.with_name(f"{folder.name}.corrupt")
    shutil.rmtree(target, ignore_errors=True)  # an earlier one of the same name that was downloaded again
    folder.rename(target)


def scores(root: Path) -> dict[CheckpointId, float | None]:
    """Return every committed checkpoint with a valid manifest, and its score (lower is better) if it was evaluated."""
    found = {}
    for checkpoint in committed(root):
        with suppress(CorruptFileError):  # reported, and set aside, when a generation starts
            found[checkpoint] = read_manifest(checkpoint.folder(root)).score
    return found


def remove_old(root: Path, to_keep: Callable[[dict[CheckpointId, float | None]], set[CheckpointId]]) -> None:
    """Remove valid checkpoints that are not kept, and incomplete ones of older generations.

    Args:
        to_keep: chooses from `scores`.
    """
    checkpoints = committed(root)
    if not checkpoints:
        return
    sound = scores(root)
    for checkpoint in sound.keys() - to_keep(sound):
        folder = checkpoint.folder(root)
        (folder / MANIFEST).unlink()  # first: a partly removed checkpoint must not look like a complete one
        shutil.rmtree(folder)
    newest = checkpoints[0]
    for path in root.iterdir():
        unfinished = CheckpointId.parse(path.name)
        if unfinished and not (path / MANIFEST).exists() and unfinished.generation < newest.generation:
            shutil.rmtree(path, ignore_errors=True)  # a rank that is considered dead may still write there
