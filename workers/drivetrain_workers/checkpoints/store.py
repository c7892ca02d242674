"""Checkpoint folders: naming, commit, validity, retention. Knows files, not tensors.

``step-00000100.g0003/`` holds per rank a raw file ``rank-00000.bin`` and its index ``rank-00000.json``; the folder
becomes a checkpoint when ``manifest.json`` appears in it. The generation in the name keeps a rank that was thought dead
from ever writing into the files of its successors.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drivetrain_pipelines.errors import CorruptFileError
from drivetrain_pipelines.storage.checksums import fsync_folder, read_json, verify_file, write_json

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


def commit(folder: Path, facts: dict[str, Any]) -> None:
    """Wait until the indexes of all ranks, ``facts["world_size"]``, are there, then the manifest: the commit point.

    Raises:
        CheckpointError: a rank did not finish within ten minutes.
    """
    deadline = time.monotonic() + _COMMIT_TIMEOUT_S
    missing = set(range(facts["world_size"]))
    while missing:
        missing = {rank for rank in missing if not (folder / rank_index(rank)).exists()}
        if missing and time.monotonic() > deadline:
            raise CheckpointError(f"ranks {sorted(missing)} did not write their part of {folder.name}")
        if missing:
            time.sleep(_COMMIT_POLL_S)
    fsync_folder(folder.parent)  # the folder itself must outlive a power cut, before older checkpoints go
    write_json(folder / MANIFEST, facts)


def verify(folder: Path, ranks: range | list[int]) -> None:
    """Check manifest, indexes and raw files of some ranks.

    Raises:
        CorruptFileError: names the first file (and block) that is not what was written.
    """
    read_json(folder / MANIFEST)
    for rank in ranks:
        index = read_json(folder / rank_index(rank))
        verify_file(folder / rank_file(rank), index["bytes"], index["xxh3"])


def newest_valid(root: Path, step: int | None = None) -> tuple[Path | None, list[str]]:
    """The newest checkpoint (of ``step``, if given) whose every byte is right; and what is wrong with newer ones."""
    problems: list[str] = []
    for checkpoint in (c for c in committed(root) if step in (None, c.step)):
        folder = checkpoint.folder(root)
        try:
            manifest = read_json(folder / MANIFEST)
            verify(folder, range(manifest["world_size"]))
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
        facts: dict[str, Any] = {}
        problem = ""
        try:
            facts = read_json(folder / MANIFEST)
            if verify_bytes:
                verify(folder, range(facts["world_size"]))
        except CorruptFileError as error:
            problem = str(error)
        numbers = checkpoint.step, checkpoint.generation, size, facts.get("world_size", 0), facts.get("zero_stage", 0)
        evaluation = facts.get("evaluation") or {}
        yield Description(str(folder), *numbers, evaluation.get("loss"), evaluation.get("metrics", {}), problem)


def set_aside_corrupt(root: Path) -> list[str]:
    """Rename checkpoints newer than the newest valid one, so that they are neither loaded nor counted as kept.

    Returns:
        What is wrong with each.
    """
    found, problems = newest_valid(root)
    for checkpoint in committed(root):
        folder = checkpoint.folder(root)
        if folder == found:
            break
        folder.rename(folder.with_name(f"{folder.name}.corrupt"))
    return problems


def scores(root: Path) -> dict[CheckpointId, float | None]:
    """Every committed checkpoint whose manifest is sound, with its score (lower is better) where it was evaluated."""
    found = {}
    for checkpoint in committed(root):
        with suppress(CorruptFileError):  # it is told, and set aside, when a generation starts
            found[checkpoint] = score_of(read_json(checkpoint.folder(root) / MANIFEST))
    return found


def score_of(manifest: dict[str, Any]) -> float | None:
    """A checkpoint's score; None where it was not evaluated, or to no finite number."""
    evaluation = manifest.get("evaluation") or {}
    score = evaluation.get("score", manifest.get("eval_loss"))  # the second: of format 1
    return float(score) if score is not None and math.isfinite(score) else None


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
