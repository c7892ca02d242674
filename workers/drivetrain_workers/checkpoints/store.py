"""Checkpoint folders: naming, commit, validity, retention. Knows files, not tensors.

``step-00000100.g0003/`` holds per rank a raw file ``rank-00000.bin`` and its index ``rank-00000.json``; the folder
becomes a checkpoint when ``manifest.json`` appears in it. The generation in the name keeps a rank that was thought dead
from ever writing into the files of its successors.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from drivetrain_pipelines.errors import CorruptFileError
from drivetrain_pipelines.storage.checksums import fsync_folder, read_json, verify_file, write_json

from drivetrain_workers.checkpoints.manifest import Manifest, RankIndex
from drivetrain_workers.errors import CheckpointError
from drivetrain_workers.records.run_folder import CheckpointId

MANIFEST = "manifest.json"
_COMMIT_TIMEOUT_S = 600.0
_COMMIT_POLL_S = 0.01


def rank_file(rank: int) -> str:
    """Raw state of one rank."""
    return f"rank-{rank:05d}.bin"


def rank_index(rank: int) -> str:
    """What lies where in `rank_file`; written after it."""
    return f"rank-{rank:05d}.json"


def committed(root: Path) -> list[CheckpointId]:
    """Every folder that has a manifest, newest first."""
    found = [CheckpointId.parse(path.parent.name) for path in root.glob(f"*/{MANIFEST}")]
    return sorted((c for c in found if c), reverse=True)


def read_manifest(folder: Path) -> Manifest:
    """Return what a checkpoint's manifest says. Raises CorruptFileError."""
    return Manifest.from_json(read_json(folder / MANIFEST))


def read_index(folder: Path, rank: int) -> RankIndex:
    """Return the index of a rank's file. Raises CorruptFileError."""
    return RankIndex.from_json(read_json(folder / rank_index(rank)))


def commit(folder: Path, manifest: Manifest) -> None:
    """Wait until the indexes of all ranks are there, then write the manifest: the commit point.

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
            time.sleep(_COMMIT_POLL_S)
    fsync_folder(folder.parent)  # the folder itself must outlive a power cut, before older checkpoints go
    write_json(folder / MANIFEST, manifest.to_json())


def verify(folder: Path, part: int = 0, parts: int = 1) -> None:
    """Check the manifest, and every byte of one of ``parts`` of the files: indexes and raw files of every n-th rank.

    Raises:
        CorruptFileError: names the first file (and block) that is not what was written.
    """
    for rank in range(part, read_manifest(folder).world_size, parts):
        verify_rank(folder, rank)


def verify_rank(folder: Path, rank: int) -> None:
    """Check index and raw file of a rank. Raises as `verify`."""
    index = read_index(folder, rank)
    verify_file(folder / rank_file(rank), index.bytes, index.xxh3)


def newest_valid(root: Path, step: int | None = None) -> tuple[Path | None, list[str]]:
    """The newest checkpoint (of ``step``, if given) whose every byte is right; and what is wrong with newer ones."""
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
    """A committed checkpoint, for people.

    Attributes:
        problem: what is wrong with it; empty where nothing was found.
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
    """Every committed checkpoint, newest first; with ``verify_bytes`` every byte is read."""
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
    shutil.rmtree(target, ignore_errors=True)  # of the same name, downloaded again since
    folder.rename(target)


def scores(root: Path) -> dict[CheckpointId, float | None]:
    """Every committed checkpoint whose manifest is sound, with its score (lower is better) where it was evaluated."""
    found = {}
    for checkpoint in committed(root):
        with suppress(CorruptFileError):  # it is told, and set aside, when a generation starts
            found[checkpoint] = read_manifest(checkpoint.folder(root)).score
    return found


def remove_old(root: Path, to_keep: Callable[[dict[CheckpointId, float | None]], set[CheckpointId]]) -> None:
    """Remove sound checkpoints that need not be kept, and what older generations left unfinished.

    Args:
        to_keep: chooses from `scores`.
    """
    checkpoints = committed(root)
    if not checkpoints:
        return
    sound = scores(root)
    for checkpoint in sound.keys() - to_keep(sound):
        folder = checkpoint.folder(root)
        (folder / MANIFEST).unlink()  # first: a half-removed checkpoint must not look like one
        shutil.rmtree(folder)
    newest = checkpoints[0]
    for path in root.iterdir():
        unfinished = CheckpointId.parse(path.name)
        if unfinished and not (path / MANIFEST).exists() and unfinished.generation < newest.generation:
            shutil.rmtree(path, ignore_errors=True)  # a rank thought dead may still be writing there
