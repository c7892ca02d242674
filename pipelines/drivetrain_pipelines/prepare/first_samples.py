"""The first samples of a job's data, made in this process, to try a job before it starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer

from drivetrain_pipelines.errors import PrepareError
from drivetrain_pipelines.prepare.facts import settle
from drivetrain_pipelines.prepare.origins import Origin, Origins, find_origins, tasks_of
from drivetrain_pipelines.prepare.parts import Part, Task
from drivetrain_pipelines.prepare.preprocessor import Preprocessor, ShardResult
from drivetrain_pipelines.prepare.result import manifest_of
from drivetrain_pipelines.prepare.splitting import AUTO, EVAL, TRAIN
from drivetrain_pipelines.prepare.tokenizer import TOKENIZER_FILE, load_tokenizer
from drivetrain_pipelines.raw.sources import SourceFile, open_file
from drivetrain_pipelines.spec import DataSpec
from drivetrain_pipelines.storage.folder import StorageFolder
from drivetrain_pipelines.storage.shards import Manifest

_CHUNK_BYTES = 1 << 20
_MAX_CHUNKS = 8  # of a source, whose records are counted until there are enough
_BYTES_PER_TOKEN = 8  # generous, so that the text fills a few samples


def first_samples(spec: DataSpec, code_folder: Path, downloads: Path, target: str, limit: int) -> Manifest:
    """Make samples of the first records of every source, as a dataset version in the folder ``target``.

    Without data for evaluation both splits hold the same samples. A tokenizer is trained on these records only.

    Args:
        spec: sources are checked and absolute; ``files`` and the tokenizer's file are on this machine.
        code_folder: directory of the user's code.
        downloads: folder where packages are unpacked.
        limit: records of each source.

    Raises:
        InputError, PrepareError: as `drivetrain_pipelines.prepare.prepare.prepare`, for these records.
    """
    enough = max(_CHUNK_BYTES, _BYTES_PER_TOKEN * spec.sequence_length) if spec.kind == "tokens" else _CHUNK_BYTES
    small = spec.model_copy(update={"chunk_bytes": enough, "train_fraction": 1.0})
    origins = find_origins(spec, downloads)
    few = replace(origins, every=tuple(_few(small, origin, Path(target), limit) for origin in origins.every))
    folder = StorageFolder(target)
    worker = Preprocessor(small, folder, code_folder, "first", limit)
    tasks = tasks_of(small, few.every)
    if spec.kind == "tokens":
        worker.make_tokenizer([[_of(tasks, origin)[0].chunk] for origin in few.every if origin.split == TRAIN])
    read = [done for origin in few.every for done in _read(worker, _of(tasks, origin), limit)]
    return _manifest(small, few, worker, [task for task, _ in read], [part for _, part in read], folder)


def tokenizer_in(folder: str) -> Tokenizer:
    """Return the tokenizer of a dataset version."""
    return load_tokenizer(StorageFolder(folder).read(TOKENIZER_FILE), TOKENIZER_FILE)


def _few(spec: DataSpec, origin: Origin, target: Path, limit: int) -> Origin:
    """Return a source with few of its files, which trains where its samples would be divided."""
    files = origin.files
    if origin.file_per_record:
        files = files[:: max(1, len(files) // limit)][:limit]  # of all classes
    else:
        files = tuple(_head(file, origin, spec, target) for file in files[:_MAX_CHUNKS])
    return replace(origin, files=files, split=TRAIN if origin.split == AUTO else origin.split)


def _head(file: SourceFile, origin: Origin, spec: DataSpec, target: Path) -> SourceFile:
    """Copy the first rows of a large CSV file, which is otherwise read as a whole; no quotes are open at its end."""
    if origin.listing.format != "csv" or file.size <= spec.chunk_bytes:
        return file
    with open_file(file.url, spec.storage) as opened:
        content = bytes(opened.read(spec.chunk_bytes))
    end = len(content)
    while (end := content.rfind(b"\n", 0, end)) > 0 and content.count(b'"', 0, end) % 2:
        pass
    name = file.url.rpartition("/")[2]
    copy = target / "heads" / (f"{name}.csv" if ".tsv" not in name else f"{name}.tsv")
    copy.parent.mkdir(exist_ok=True)
    copy.write_bytes(content[: end + 1])
    return SourceFile(str(copy), end + 1, "")


def _of(tasks: list[Task], origin: Origin) -> list[Task]:
    """Return the first chunks of a source."""
    own = [task for task in tasks if (task.key, task.split) == (origin.key, origin.split)]
    if not own:
        raise PrepareError(f"{origin.key} has no records")
    return own[:_MAX_CHUNKS]


def _read(worker: Preprocessor, tasks: list[Task], limit: int) -> list[tuple[Task, Part]]:
    made: list[tuple[Task, Part]] = []
    for task in tasks:
        made.append((task, worker.write_part(task)))
        if sum(part.records for _, part in made) >= limit:
            break
    return made


def _manifest(
    spec: DataSpec, origins: Origins, worker: Preprocessor, tasks: list[Task], parts: list[Part], folder: StorageFolder
) -> Manifest:
    facts = settle(spec, tasks, parts)
    results = [worker.write_shards(group, facts.conversion) for group in facts.groups]
    if not any(EVAL in result.shards for result in results):
        results = [_also_for_evaluation(result) for result in results]
    manifest = manifest_of(spec, "first", {}, origins, facts, results)
    manifest.write(folder)
    return manifest


def _also_for_evaluation(result: ShardResult) -> ShardResult:
    return replace(result, shards=dict.fromkeys((TRAIN, EVAL), result.shards[TRAIN])) if result.shards else result
