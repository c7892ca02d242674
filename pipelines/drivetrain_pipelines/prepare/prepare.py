"""Preparation of a dataset version from raw input, on Ray actors; skipped when the version already exists.

A version is named by everything that its bytes depend on. Chunks of raw data become parts; the facts of all parts
settle types, classes and the division into groups; groups become shards. The finished parts and groups of an
interrupted preparation are kept: each has a marker file, and only those without one are repeated. The manifest comes
last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from drivetrain_pipelines.errors import CorruptFileError
from drivetrain_pipelines.prepare.actor_pool import ActorPool
from drivetrain_pipelines.prepare.facts import settle
from drivetrain_pipelines.prepare.origins import Origins, find_origins, made_from, tasks_of, version_of
from drivetrain_pipelines.prepare.parts import Part, Task
from drivetrain_pipelines.prepare.preprocessor import PARTS, parts_made, shards_made
from drivetrain_pipelines.prepare.result import manifest_of, notes_of
from drivetrain_pipelines.prepare.splitting import EVAL
from drivetrain_pipelines.raw.chunks import Chunk
from drivetrain_pipelines.spec import DataSpec
from drivetrain_pipelines.storage.checksums import content_digest
from drivetrain_pipelines.storage.folder import StorageFolder
from drivetrain_pipelines.storage.json_files import JsonObject
from drivetrain_pipelines.storage.shards import Manifest

_POLL_INTERVAL_S = 1.0
WAITING = "waiting for a free CPU"

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Prepared:
    """A dataset version that exists.

    Attributes:
        made: whether this call prepared it.
        notes: sentences about data that was left out.
    """

    folder: StorageFolder
    manifest: Manifest
    made: bool
    notes: tuple[str, ...] = ()


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
        InputError, PrepareError: a source is empty, unreadable or too short, or has bad records.
    """
    on_progress(0, 0, "looking for raw data")
    version = DatasetVersion.of(spec, root, downloads, code_folder)
    downloads.mkdir(parents=True, exist_ok=True)
    with _held(lock_of(downloads, spec.name, version.name), on_progress):  # others wait here and then find the version
        if found := version.found():
            return found
        tasks = tasks_of(spec, version.origins.every)
        digest = parts_folder(spec, tasks)
        with ActorPool(actors, spec, version.folder, code_folder, digest) as pool:
            parts = _make_parts(spec, tasks, version.folder, digest, pool, on_progress)
            facts = settle(spec, tasks, parts)
            results = shards_made(version.folder)
            missing = {group.number: (group, facts.conversion) for group in facts.groups if group.number not in results}
            _map(pool, "write_shards", missing, results, "making shards", on_progress)
        made = [results[group.number] for group in facts.groups]
        manifest = manifest_of(spec, version.name, version.made_from, version.origins, facts, made)
        manifest.write(version.folder)
        version.folder.remove(PARTS)
        return Prepared(version.folder, manifest, True, notes_of(manifest, version.origins))


def find(spec: DataSpec, root: str, downloads: Path, code_folder: Path) -> Prepared | None:
    """Return the dataset version that ``spec`` describes, or None if it was not prepared yet; needs no Ray.

    Args: see `prepare`.

    Raises:
        InputError, PrepareError: a source is empty or unreadable.
    """
    return DatasetVersion.of(spec, root, downloads, code_folder).found()


@dataclass(frozen=True)
class DatasetVersion:
    """A dataset version, which may exist.

    Attributes:
        made_from: everything that it depends on.
    """

    name: str
    folder: StorageFolder
    origins: Origins
    made_from: JsonObject

    @classmethod
    def of(cls, spec: DataSpec, root: str, downloads: Path, code_folder: Path) -> DatasetVersion:
        """List the sources and return the version that is made from them. Args and Raises: see `prepare`."""
        origins = find_origins(spec, downloads)
        inputs = made_from(spec, origins, code_folder)
        name = version_of(inputs)
        return cls(name, StorageFolder(f"{root}/{spec.name}/{name}", spec.storage), origins, inputs)

    def found(self) -> Prepared | None:
        """Return the version; None when it is missing or damaged."""
        try:
            manifest = Manifest.read(self.folder).check_sizes(self.folder)
        except CorruptFileError:
            return None
        return Prepared(self.folder, manifest, False, notes_of(manifest, self.origins))


def parts_folder(spec: DataSpec, tasks: list[Task]) -> str:
    """Return the folder of the parts of a division into chunks, and into blocks."""
    return content_digest([spec.chunk_bytes, [repr(task) for task in tasks]])


def training_chunks(tasks: list[Task]) -> list[list[Chunk]]:
    """Return the chunks of each source that a tokenizer is trained on."""
    chunks: dict[int, list[Chunk]] = {}
    for task in tasks:
        if task.split != EVAL:
            chunks.setdefault(task.chunk.source_index, []).append(task.chunk)
    return list(chunks.values())


def _make_parts(
    spec: DataSpec, tasks: list[Task], folder: StorageFolder, digest: str, pool: ActorPool, on_progress: Progress
) -> list[Part]:
    parts = parts_made(folder, digest)
    missing = {task.number: (task,) for task in tasks if task.number not in parts}
    if missing and spec.kind == "tokens":
        on_progress(0, len(tasks), "training the tokenizer")

        def report(running: bool) -> None:
            on_progress(0, len(tasks), "training the tokenizer" if running else WAITING)

        pool.map("make_tokenizer", {0: (training_chunks(tasks),)}, lambda *_: None, report)
    _map(pool, "write_part", missing, parts, "reading records", on_progress)
    return [parts[task.number] for task in tasks]


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
    pool: ActorPool,
    method: str,
    calls: dict[int, tuple[Any, ...]],
    results: dict[int, Any],
    what: str,
    on_progress: Progress,
) -> None:
    """Call a method for what is missing in ``results``, and report the progress."""
    total = len(calls) + len(results)

    def store(number: int, result: Any) -> None:
        results[number] = result
        on_progress(len(results), total, what)

    def report(running: bool) -> None:
        on_progress(len(results), total, what if running else WAITING)

    report(True)
    pool.map(method, calls, store, report)


def lock_of(downloads: Path, name: str, version: str) -> FileLock:
    """Return the lock that a process holds while it prepares, or removes, a dataset version."""
    return FileLock(downloads / f".{name}-{version}.lock")
