"""Prepared datasets without a run: make, find, verify, show, remove; and the audit of the samples that a run used."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from drivetrain_pipelines.errors import CorruptFileError, FetchError, InputError
from drivetrain_pipelines.prepare.prepare import Prepared, lock_of, prepare
from drivetrain_pipelines.prepare.tokenizer import TOKENIZER_FILE, load_tokenizer
from drivetrain_pipelines.raw.records import Row
from drivetrain_pipelines.spec import StorageSpec
from drivetrain_pipelines.storage.paths import is_local, local_path
from drivetrain_pipelines.stream.columns import Ragged
from drivetrain_pipelines.stream.dataset import CacheSettings, Dataset, open_dataset
from drivetrain_workers.records import ledger
from drivetrain_workers.records.adjustments import Adjustments
from drivetrain_workers.records.audit import Audit, audit
from filelock import Timeout

from drivetrain.cluster.connection import connect
from drivetrain.errors import NotFoundError
from drivetrain.home import Home
from drivetrain.job.files import with_files
from drivetrain.job.loading import load_job
from drivetrain.job.snapshots import temporary_snapshot
from drivetrain.job.spec import stored_spec
from drivetrain.runs.store import RunStore

_CACHE_BYTES = 64 << 30


def prepare_data(
    job: str, overrides: Iterable[str], address: str | None, on_progress: Callable[[int, int, str], None]
) -> Prepared:
    """Make the dataset version that a job needs, or find it. Raises `InputError`, `PrepareError`."""
    checked, home = load_job(job, overrides), Home.from_environment()
    data = with_files(checked.spec, home).data
    with temporary_snapshot(checked.code, home) as code, connect(address):
        root = data.location or str(home.datasets)
        actors = checked.spec.resources.preprocessors
        return prepare(data, root, home.downloads, code, actors, on_progress)


def find_dataset(where: str, endpoint_url: str | None = None) -> Dataset:
    """Return a dataset, given by its folder, its URL, its name (the newest version) or ``NAME/VERSION``.

    Raises:
        NotFoundError: there is none.
        CorruptFileError: its manifest is not valid.
    """
    if is_local(where):
        where = str(local_path(where))
        root = Home.from_environment().datasets
        folders = [Path(where), root / where, *sorted((root / where).glob("*"), key=_age)]
        found = [folder for folder in folders if (folder / "manifest.json").is_file()]
        if not found:
            names = [path.name for path in sorted(root.glob("*"))]
            raise NotFoundError("dataset", where, names, str(root), "A folder or a URL is allowed, too.")
        return Dataset(str(found[0]))
    # A private cache: it is the storage that is inspected, not what was fetched from it earlier.
    folder = tempfile.mkdtemp(prefix="drivetrain-inspect-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Dataset(where.rstrip("/"), StorageSpec(endpoint_url=endpoint_url), CacheSettings(Path(folder), _CACHE_BYTES))


def verify(dataset: Dataset) -> Iterator[str]:
    """Read every byte of every shard, and yield each problem with its file and block."""
    for split, shards in dataset.manifest.splits.items():
        arena, files = dataset.open(split)
        try:
            for number in range(len(shards)):
                try:
                    arena.map_shard(number, files.acquire(number))
                except (CorruptFileError, FetchError) as error:
                    yield str(error)
                else:
                    arena.unmap_shard(number)
                    files.release(number)
        finally:
            arena.close()
            files.close()


def head(dataset: Dataset, split: str, rows: int) -> Iterator[Row]:
    """Yield the first samples of a split in readable form: tokens as text, large arrays by their shape.

    Raises:
        InputError: no such split.
    """
    if split not in dataset.manifest.splits:
        raise InputError("--split", repr(split), " or ".join(dataset.manifest.splits))
    count = min(rows, dataset.manifest.rows(split))
    columns = dataset.read(split, np.arange(count, dtype=np.int64))
    tokenizer = load_tokenizer(dataset.folder.read(TOKENIZER_FILE), TOKENIZER_FILE) if "tokens" in columns else None
    for number in range(count):
        sample: Row = {}
        for name, values in columns.items():
            row = values.row(number) if isinstance(values, Ragged) else values[number]
            if name == "tokens" and tokenizer:
                sample["text"] = tokenizer.decode(row.tolist(), skip_special_tokens=False)
            elif row.size == 1:
                sample[name] = row.reshape(-1)[0].item()
            else:
                sample[name] = f"{row.dtype}{list(row.shape)}"
        yield sample


def garbage() -> list[Path]:
    """Return the versions that no run refers to, and the folders of unfinished preparations."""
    home = Home.from_environment()
    used = RunStore(home.database_url).datasets()
    return [folder for folder in sorted(home.datasets.glob("*/*")) if folder.is_dir() and str(folder) not in used]


def remove(folders: Iterable[Path]) -> None:
    """Remove dataset versions, except those in preparation; the manifest first: no partial version is ever found."""
    home = Home.from_environment()
    home.downloads.mkdir(exist_ok=True)
    for folder in folders:
        lock = lock_of(home.downloads, folder.parent.name, folder.name)
        with suppress(Timeout), lock.acquire(timeout=0):  # a version whose lock is held is being made
            (folder / "manifest.json").unlink(missing_ok=True)
            shutil.rmtree(folder)


def audit_run(run_id: str) -> Audit:
    """Return what the ledger of a run proves.

    Raises:
        NotFoundError: there is no such run.
        InputError: it has not trained yet.
        CorruptFileError: the ledger or the manifest does not hold what was written.
    """
    home = Home.from_environment()
    record = RunStore(home.database_url).get(run_id)
    folder = home.run(record.id)
    records = ledger.read(folder.ledger)
    if not records:
        raise InputError("RUN", repr(run_id), "a run that has saved a checkpoint", "Its ledger is empty so far.")
    spec = stored_spec(folder)
    assert record.facts.dataset  # it has trained
    dataset = open_dataset(record.facts.dataset, spec.data)
    skips = Adjustments.read(folder.adjustments).skips
    return audit(records, dataset.training_order(spec.data, spec.seed), spec.training.global_batch_size, skips)


def _age(folder: Path) -> float:
    return -folder.stat().st_mtime
