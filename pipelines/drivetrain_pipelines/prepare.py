"""Raw input to a dataset version, on Ray actors; skipped when the same version is already there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.exceptions

from drivetrain_pipelines.errors import CorruptFileError, PrepareError
from drivetrain_pipelines.preprocessor import ChunkResult, Preprocessor
from drivetrain_pipelines.shards import Manifest, unigram_entropy
from drivetrain_pipelines.sources import Chunk, SourceFile, cut, list_files
from drivetrain_pipelines.spec import DataSpec

_FORMAT = 1  # part of every fingerprint: raise it when the same settings begin to give other bytes

Progress = Callable[[int, int, str], None]


def prepare(
    spec: DataSpec, root: Path, downloads: Path, code_folder: Path, actors: int, on_progress: Progress
) -> tuple[Path, Manifest, bool]:
    """Make sure that the dataset version which ``spec`` describes exists.

    Args:
        spec: sources already checked and absolute.
        root: datasets live at ``root/name/version``.
        downloads: where packages are unpacked.
        code_folder: the user's code (``data.transform``).
        actors: preprocessing actors to run side by side; the bytes written do not depend on it.
        on_progress: called with (done, total, what).

    Returns:
        The dataset's folder, its manifest, and whether anything had to be done.

    Raises:
        PrepareError: the source is empty or unreadable, too short, or the user's transform failed.
    """
    on_progress(0, 0, "looking for raw data")
    sources = {"train": list_files(spec.source, downloads)}
    if spec.eval_source:
        sources["eval"] = list_files(spec.eval_source, downloads)
    made_from = _inputs(spec, sources, code_folder)
    version = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
    folder = root / spec.name / version
    try:
        return folder, Manifest.read(folder).check_sizes(folder), False
    except CorruptFileError:  # not there, or damaged: made (again)
        folder.mkdir(parents=True, exist_ok=True)

    results = _run(spec, sources, folder, code_folder, actors, on_progress)
    manifest = _manifest(spec.name, version, made_from, results)
    manifest.write(folder)
    return folder, manifest, True


def _inputs(spec: DataSpec, sources: dict[str, list[SourceFile]], code_folder: Path) -> dict[str, Any]:
    """Everything that the bytes of the dataset depend on, with file contents in place of file names."""
    settings = spec.model_dump(exclude={"name", "source", "eval_source"})
    if spec.tokenizer.file:
        settings["tokenizer"] = hashlib.sha256(Path(spec.tokenizer.file).read_bytes()).hexdigest()
    code = {}
    if spec.transform:
        code = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(code_folder.rglob("*.py"))}
    digests = {split: [file.xxh3 for file in files] for split, files in sources.items()}
    return {"format": _FORMAT, "settings": settings, "code": code, "sources": digests}


def _run(
    spec: DataSpec,
    sources: dict[str, list[SourceFile]],
    folder: Path,
    code_folder: Path,
    actors: int,
    on_progress: Progress,
) -> list[ChunkResult]:
    """Spread the chunks over the actors. Ray restarts an actor that dies and repeats its task, which is idempotent."""
    chunks = {split: cut(files, spec.chunk_bytes) for split, files in sources.items()}
    train_split = "train" if spec.eval_source else "auto"
    tasks = [(train_split, number, chunk) for number, chunk in enumerate(chunks["train"])]
    tasks += [("eval", number, chunk) for number, chunk in enumerate(chunks.get("eval", []))]
    # max_task_retries makes an actor's death invisible here; a user's exception still comes through.
    actor_class: Any = ray.remote(num_cpus=1, max_restarts=3, max_task_retries=3)(Preprocessor)
    pool = [actor_class.remote(spec, folder, code_folder) for _ in range(max(1, min(actors, len(tasks))))]
    try:
        on_progress(0, len(tasks), "training the tokenizer")
        pings = {actor.ping.remote(): actor for actor in pool}
        (first, *_), _ = ray.wait(list(pings))  # on a small or busy cluster the others may start later, or never
        ray.get(pings[first].make_tokenizer.remote(chunks["train"]))
        return _map_in_order(pool, tasks, on_progress)
    except ray.exceptions.RayTaskError as error:
        raise PrepareError(f"preparing {spec.source} failed: {error.cause!r}") from error
    except ray.exceptions.RayActorError as error:
        raise PrepareError(f"a preprocessing actor could not be kept alive: {error}") from error
    finally:
        for actor in pool:
            ray.kill(actor)


def _map_in_order(pool: list[Any], tasks: list[tuple[str, int, Chunk]], on_progress: Progress) -> list[ChunkResult]:
    """One task at a time per actor, results by task number, so that nothing depends on who finishes first."""
    results: dict[int, ChunkResult] = {}
    arriving = {actor.ping.remote(): actor for actor in pool}
    running: dict[Any, tuple[int, Any]] = {}
    idle: list[Any] = []
    waiting = list(enumerate(tasks))
    while waiting or running:
        while waiting and idle:
            index, task = waiting.pop(0)
            actor = idle.pop()
            running[actor.write_chunk.remote(*task)] = (index, actor)
        (done, *_), _ = ray.wait([*running, *arriving])
        if done in arriving:
            idle.append(arriving.pop(done))
            continue
        index, actor = running.pop(done)
        results[index] = ray.get(done)
        idle.append(actor)
        on_progress(len(results), len(tasks), "tokenizing")
    return [results[index] for index in range(len(tasks))]


def _manifest(name: str, version: str, made_from: dict[str, Any], results: list[ChunkResult]) -> Manifest:
    splits = {
        split: [result.shards[split] for result in results if split in result.shards] for split in ("train", "eval")
    }
    for split, shards in splits.items():
        if not shards:
            raise PrepareError(f"the {split} text is too short for one sample of data.sequence_length tokens")
    counts = np.sum([result.token_counts for result in results], axis=0)
    statistics = {
        "train_tokens": float(counts.sum()),
        "dropped_tokens": float(sum(result.dropped_tokens for result in results)),
        "vocab_size": float(len(counts)),
        "unigram_entropy": unigram_entropy(counts.tolist()),
    }
    return Manifest(name, version, splits, statistics, made_from)
