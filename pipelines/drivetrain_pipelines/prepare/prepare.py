"""Preparation of a dataset version from raw input, on Ray actors; skipped when the version already exists.

A version is named by everything that its bytes depend on. The finished chunks of an interrupted preparation are kept:
each chunk writes a marker file next to its shards, and only chunks without one are repeated. The manifest comes last.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.exceptions
from filelock import FileLock, Timeout

from drivetrain_pipelines.actors.ray_failures import in_words
from drivetrain_pipelines.errors import CorruptFileError, InputError, PrepareError, UserCodeError
from drivetrain_pipelines.prepare.preprocessor import PARTS, ChunkResult, Preprocessor
from drivetrain_pipelines.prepare.splitting import AUTO
from drivetrain_pipelines.raw.labels import read_labels
from drivetrain_pipelines.raw.records import FILE_PER_RECORD, Chunk, chunk_files, chunk_labelled_files
from drivetrain_pipelines.raw.sources import SourceFile, format_of, list_files
from drivetrain_pipelines.spec import DataSpec
from drivetrain_pipelines.storage.access import accessing
from drivetrain_pipelines.storage.checksums import tree_digest
from drivetrain_pipelines.storage.folder import StorageFolder
from drivetrain_pipelines.storage.json_files import JsonObject
from drivetrain_pipelines.storage.shards import Manifest, schema_from_text, unigram_entropy

_FORMAT = 2  # part of every fingerprint: increase it when the same settings produce other bytes
_POLL_INTERVAL_S = 1.0
_STALL_TIMEOUT_S = 4 * 3600.0  # a chunk of an hour is slow but possible
_MAX_LISTED = 10  # bad records that are listed; all are counted
_NOT_CONTENT = {
    "name",
    "source",
    "eval_source",
    "location",
    "storage",
    "cache_bytes",
    "files",
    "lanes",
    "online",
    "shuffle_window",
    "tokenizer",
}

Progress = Callable[[int, int, str], None]
Task = tuple[str, int, Chunk]


@dataclass(frozen=True)
class Prepared:
    """A dataset version that exists.

    Attributes:
        made: whether this call prepared it.
    """

    folder: StorageFolder
    manifest: Manifest
    made: bool


@dataclass(frozen=True)
class _Raw:
    """One source: its files, their format and the split of its samples."""

    files: list[SourceFile]
    format: str
    split: str
    source_index: int


def prepare(
    spec: DataSpec, root: str, downloads: Path, code_folder: Path, actors: int, on_progress: Progress
) -> Prepared:
    """Prepare the dataset version that ``spec`` describes, unless it exists.

    Args:
        spec: sources are checked and absolute; ``files`` and the tokenizer's file are on this machine.
        root: folder or URL; datasets are stored at ``root/name/version``.
        downloads: folder where packages are unpacked and where preparations on this machine wait for each other.
        code_folder: directory of the user's code (``data.transform``).
        actors: number of parallel preprocessing actors; the written bytes do not depend on it.
        on_progress: called with (done, total, what), repeatedly during each wait. What it raises ends the preparation.

    Raises:
        UserCodeError: the job's reader or transform raised an exception.
        PrepareError: the source is empty or unreadable, too short, or the user's transform failed.
    """
    on_progress(0, 0, "looking for raw data")
    raw = list(_raw(spec, downloads))
    made_from = _inputs(spec, raw, code_folder)
    version = _version(made_from)
    folder = _folder(spec, root, version)
    downloads.mkdir(parents=True, exist_ok=True)
    with _held(lock_of(downloads, spec.name, version), on_progress):  # others wait here and then find the version
        try:
            return Prepared(folder, Manifest.read(folder).check_sizes(folder), made=False)
        except CorruptFileError:  # missing or damaged: prepare it
            with accessing(" ".join(entry.source for entry in spec.mixture)):
                classes, tasks = _tasks(spec, raw)
                results = _run(spec, tasks, folder, code_folder, actors, on_progress)
            manifest = _manifest(spec, version, made_from, classes, results)
            manifest.write(folder)
            folder.remove(PARTS)
            return Prepared(folder, manifest, made=True)


def find(spec: DataSpec, root: str, downloads: Path, code_folder: Path) -> Prepared | None:
    """Return the dataset version that ``spec`` describes, or None if it was not prepared yet; needs no Ray.

    Args: see `prepare`.

    Raises:
        PrepareError: the source is empty or unreadable.
    """
    folder = _folder(spec, root, _version(_inputs(spec, list(_raw(spec, downloads)), code_folder)))
    try:
        return Prepared(folder, Manifest.read(folder).check_sizes(folder), made=False)
    except CorruptFileError:
        return None


def _version(made_from: JsonObject) -> str:
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]


def _folder(spec: DataSpec, root: str, version: str) -> StorageFolder:
    return StorageFolder(f"{root}/{spec.name}/{version}", spec.storage)


def _raw(spec: DataSpec, downloads: Path) -> Iterator[_Raw]:
    split = "train" if spec.eval_source else AUTO
    named = [(entry.source, split, number) for number, entry in enumerate(spec.mixture)]
    if spec.eval_source:
        named.append((spec.eval_source, "eval", 0))
    for source, split, source_index in named:
        with accessing(source):
            files = list_files(source, spec.file_format, spec.storage, downloads)
        yield _Raw(files, format_of([file.url for file in files], spec.file_format), split, source_index)


def _inputs(spec: DataSpec, raw: list[_Raw], code_folder: Path) -> JsonObject:
    """Return everything that the bytes of the dataset depend on, with file contents instead of file names."""
    settings = spec.model_dump(mode="json", exclude=_NOT_CONTENT)
    if spec.kind == "tokens":
        file = spec.tokenizer.file
        settings["tokenizer"] = (
            hashlib.sha256(Path(file).read_bytes()).hexdigest()
            if file
            else [spec.tokenizer.vocab_size, *spec.tokenizer.special_tokens]
        )
    code = {}
    if spec.transform or spec.reader:
        code = {
            p.relative_to(code_folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(code_folder.rglob("*.py"))
        }
    sources: list[list[Any]] = [[source.format, source.split, [file.digest for file in source.files]] for source in raw]
    for source, described in zip(raw, sources, strict=True):
        if source.format in FILE_PER_RECORD:  # a file that was moved to another class is another sample
            labels = read_labels(source.files, spec.storage)
            described.append([labels.get(file.url) for file in source.files])
    files = {name: tree_digest(Path(path)) for name, path in spec.files.items()}
    return {"format": _FORMAT, "settings": settings, "code": code, "files": files, "sources": sources}


def _tasks(spec: DataSpec, raw: list[_Raw]) -> tuple[list[str], list[Task]]:
    """Return the names of the classes, and the chunks of all sources with consecutive numbers."""
    labels = {
        n: read_labels(source.files, spec.storage) for n, source in enumerate(raw) if source.format in FILE_PER_RECORD
    }
    classes = sorted({label for by_url in labels.values() for label in by_url.values()}) or spec.classes or []
    number_of = {name: number for number, name in enumerate(classes)}
    tasks: list[Task] = []
    for n, source in enumerate(raw):
        if n in labels:
            numbers = {url: number_of[label] for url, label in labels[n].items()}
            chunks = chunk_labelled_files(source.files, numbers, source.format, spec.chunk_bytes, source.source_index)
        else:
            chunks = chunk_files(source.files, source.format, spec.chunk_bytes, spec.storage, source.source_index)
        tasks += [(source.split, len(tasks) + number, chunk) for number, chunk in enumerate(chunks)]
    return classes, tasks


def _run(
    spec: DataSpec, tasks: list[Task], folder: StorageFolder, code_folder: Path, actors: int, on_progress: Progress
) -> list[ChunkResult]:
    """Distribute the chunks over the actors. Ray restarts an actor that dies and repeats its (idempotent) task."""
    results = {number: result for _, number, _ in tasks if (result := ChunkResult.load(folder, number))}
    pending = [task for task in tasks if task[1] not in results]
    if not pending:
        return [results[number] for number in range(len(tasks))]
    # Ray repeats a call without limit after an actor's death (up to three) and after a network failure; an exception of
    # the user's code is still raised.
    actor_class: Any = ray.remote(num_cpus=1, max_restarts=3, max_task_retries=-1)(Preprocessor)
    pool = [actor_class.remote(spec, folder, code_folder) for _ in range(max(1, min(actors, len(pending))))]
    try:
        if spec.kind == "tokens":
            on_progress(0, len(tasks), "training the tokenizer")
            pings = {actor.ping.remote(): actor for actor in pool}
            # On a small or busy cluster the others may start later, or never.
            first = _first(list(pings), lambda: on_progress(0, len(tasks), "waiting for a free CPU"))
            made = pings[first].make_tokenizer.remote(_interleaved(tasks))
            stall = _Stall(spec.name)

            def report() -> None:
                stall.check()
                on_progress(0, len(tasks), "training the tokenizer")

            ray.get(_first([made], report))
        _map(pool, pending, results, len(tasks), on_progress, _Stall(spec.name))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserCodeError | InputError | OSError):
            raise error.cause from None
        problem = str(error.cause) if isinstance(error.cause, PrepareError) else in_words(error)
        raise PrepareError(f"preparing {spec.name} failed: {problem}") from error
    except ray.exceptions.RayError as error:
        fix = "Its code may end the process (os._exit), or a chunk may need more memory: reduce data.chunk_bytes."
        raise PrepareError(f"a preprocessing actor could not be kept alive: {in_words(error)}", fix) from error
    finally:
        for actor in pool:
            ray.kill(actor)
    return [results[number] for number in range(len(tasks))]


def _interleaved(tasks: list[Task]) -> list[Chunk]:
    """Return training chunks, alternating between the sources, so that a tokenizer sees all of them."""
    chunks = [chunk for split, _, chunk in tasks if split != "eval"]
    turn: dict[int, int] = {}
    order = []
    for index, chunk in enumerate(chunks):
        turn[chunk.source_index] = turn.get(chunk.source_index, -1) + 1
        order.append((turn[chunk.source_index], chunk.source_index, index))
    return [chunks[index] for _, _, index in sorted(order)]


class _Stall:
    """Notices that nothing is finished any more: a function of the job may never return."""

    def __init__(self, name: str) -> None:
        self._name, self._since = name, time.monotonic()

    def reset(self) -> None:
        """Note that something was finished, or that nothing is running."""
        self._since = time.monotonic()

    def check(self) -> None:
        """Raise `PrepareError` after the limit."""
        if time.monotonic() - self._since > _STALL_TIMEOUT_S:
            problem = f"preparing {self._name} failed: no chunk was finished within {_STALL_TIMEOUT_S / 3600:g} hours"
            raise PrepareError(problem, "A function of the job may never return; or reduce data.chunk_bytes.")


def _first(calls: list[Any], on_wait: Callable[[], object]) -> Any:
    """Return the first of some calls that is done; ``on_wait`` is called regularly until then."""
    while True:
        done, _ = ray.wait(calls, timeout=_POLL_INTERVAL_S)
        if done:
            return done[0]
        on_wait()


@contextmanager
def _held(lock: FileLock, on_progress: Progress) -> Iterator[None]:
    """Hold a lock; report while another process has it."""
    while True:
        with suppress(Timeout):
            lock.acquire(timeout=_POLL_INTERVAL_S)
            break
        on_progress(0, 0, "waiting for another run that prepares the same data")
    try:
        yield
    finally:
        lock.release()


def _map(
    pool: list[Any],
    tasks: list[Task],
    results: dict[int, ChunkResult],
    total: int,
    on_progress: Progress,
    stall: _Stall,
) -> None:
    """Run one chunk at a time per actor, which bounds memory. Results are stored by number, so timing has no effect."""
    arriving = {actor.ping.remote(): actor for actor in pool}
    running: dict[Any, tuple[int, Any]] = {}
    idle: list[Any] = []
    pending = list(reversed(tasks))

    def report() -> None:
        if not running:
            stall.reset()  # a busy cluster has no CPU yet
        stall.check()
        on_progress(len(results), total, "making shards" if running else "waiting for a free CPU")

    on_progress(len(results), total, "making shards")
    while pending or running:
        while pending and idle:
            task = pending.pop()
            actor = idle.pop()
            running[actor.write_chunk.remote(*task)] = (task[1], actor)
        done = _first([*running, *arriving], report)
        if done in arriving:
            idle.append(arriving.pop(done))
            continue
        number, actor = running.pop(done)
        results[number] = ray.get(done)
        idle.append(actor)
        stall.reset()
        on_progress(len(results), total, "making shards")


def _manifest(
    spec: DataSpec, version: str, made_from: JsonObject, classes: list[str], results: list[ChunkResult]
) -> Manifest:
    splits = {
        split: [result.shards[split] for result in results if split in result.shards] for split in ("train", "eval")
    }
    skipped = [location for result in results for location in result.skipped]
    for split, shards in splits.items():
        if not shards:
            hint = f"; {len(skipped)} records were skipped, the first: {skipped[0]}" if skipped else ""
            raise PrepareError(f"the data is too short: not one sample for {split}{hint}")
    schemas = {result.schema for result in results if result.schema}
    if len(schemas) > 1:
        raise PrepareError("chunks have samples of different types; data.transform must return the same types for all")
    statistics = {"skipped": float(len(skipped)), "dropped_tokens": float(sum(r.dropped_tokens for r in results))}
    if classes:
        statistics["classes"] = float(len(classes))
    if spec.kind == "tokens":
        counts = np.array([result.token_counts for result in results], np.int64).sum(axis=0)
        statistics |= {
            "train_tokens": float(counts.sum()),
            "vocab_size": float(len(counts)),
            "unigram_entropy": unigram_entropy(counts.tolist()),
        }
    schema = schema_from_text(schemas.pop())
    return Manifest(spec.name, version, schema, splits, statistics, made_from, classes, skipped[:_MAX_LISTED])


def lock_of(downloads: Path, name: str, version: str) -> FileLock:
    """Return the lock that a process holds while it prepares, or removes, a dataset version."""
    return FileLock(downloads / f".{name}-{version}.lock")
