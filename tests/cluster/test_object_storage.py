"""Datasets in object storage: a real S3 server on loopback, whole and misbehaving."""

from __future__ import annotations

import fcntl
import multiprocessing
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from drivetrain_pipelines.errors import CorruptFileError, FetchError, InputError
from drivetrain_pipelines.prepare.prepare import find
from drivetrain_pipelines.spec import DataSpec, StorageSpec
from drivetrain_pipelines.storage.fetch import Fetcher, RetryPolicy
from drivetrain_pipelines.storage.folder import StorageFolder, open_storage
from drivetrain_pipelines.storage.shards import Manifest
from drivetrain_pipelines.stream.cache import CachedFiles
from drivetrain_pipelines.stream.dataset import CacheSettings, Dataset
from drivetrain_pipelines.stream.reader import StreamReader

from tests.s3 import KEYS, S3, s3_server
from tests.unit.datasets import make_dataset

ROWS = [3000] * 24
SHARD = 200_000  # bytes, roughly


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("local"), ROWS)


@pytest.fixture(scope="module")
def remote(s3: S3, local: Dataset) -> str:
    """Return the same dataset version, uploaded."""
    assert local.folder.local
    target = StorageFolder(f"{s3.url}/toy/v1", s3.direct)
    for path in local.folder.local.iterdir():
        target.write(path.name, path.read_bytes())
    return target.location


@pytest.fixture(autouse=True)
def _no_faults(s3: S3) -> Iterator[None]:
    yield
    s3.faults.__init__()  # type: ignore[misc]


def stream(dataset: Dataset, steps: int, rows: slice = slice(0, 64)) -> tuple[list[list[int]], CachedFiles | None]:
    """Return the labels of each batch."""
    arena, files = dataset.open("train")
    reader = StreamReader(arena, files, dataset.order("train", [1], 5, 8, 256), 64, rows, 0)
    try:
        return [batch.columns["label"][:, 0].tolist() for batch, _ in zip(reader, range(steps), strict=False)], files
    finally:
        reader.close()
        arena.close()


def cached(remote: str, storage: StorageSpec, folder: Path, limit: int = 1 << 30) -> Dataset:
    return Dataset(remote, storage, CacheSettings(folder, limit))


STEPS = sum(ROWS) // 64


def test_cold_and_warm_epochs(s3: S3, local: Dataset, remote: str, tmp_path: Path) -> None:
    expected, _ = stream(local, STEPS)
    cold, files = stream(cached(remote, s3.storage, tmp_path), STEPS)
    assert cold == expected
    assert files._fetcher.counters["requests"] == len(ROWS)
    s3.faults.down = True  # a warm epoch requests only the manifest
    warm = Dataset(remote, s3.direct, CacheSettings(tmp_path, 1 << 30))
    assert stream(warm, STEPS)[0] == expected


def test_every_fault_is_survived(s3: S3, local: Dataset, remote: str, tmp_path: Path) -> None:
    dataset = cached(remote, s3.storage, tmp_path)
    s3.faults.slow_down, s3.faults.internal_error, s3.faults.slow_first_byte = 0.15, 0.1, 0.05
    s3.faults.cut = s3.faults.truncated = s3.faults.flipped = 0.1
    delivered, files = stream(dataset, STEPS)
    assert delivered == stream(local, STEPS)[0]
    assert {"slow_down", "internal_error", "cut", "truncated", "flipped"} <= s3.faults.seen.keys()
    assert files._fetcher.counters["corrupt"] >= 1


def test_an_outage_is_waited_out(s3: S3, local: Dataset, remote: str, tmp_path: Path) -> None:
    dataset = cached(remote, s3.storage, tmp_path)
    s3.faults.seen.clear()
    s3.faults.down = True

    def come_back() -> None:
        while s3.faults.seen["down"] < 8:
            time.sleep(0.01)
        s3.faults.down = False

    back = threading.Thread(target=come_back)
    back.start()
    assert stream(dataset, 20)[0] == stream(local, 20)[0]
    back.join()


def test_an_outage_that_lasts_is_an_error(s3: S3, remote: str, tmp_path: Path) -> None:
    manifest = Dataset(remote, s3.direct, CacheSettings(tmp_path, 1 << 30)).manifest
    filesystem, path = open_storage(remote, s3.storage)
    files = CachedFiles(
        tmp_path, path, manifest.splits["train"], Fetcher(filesystem, policy=RetryPolicy(2.0, 0.1, 0.5)), 1 << 30
    )
    s3.faults.down = True
    with pytest.raises(FetchError, match=r"block 0 of .*train-00003\.arrow.*attempts in \d s"):
        files.acquire(3)
    files.close()
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".part"] == []


def test_the_cache_keeps_its_bound(s3: S3, local: Dataset, remote: str, tmp_path: Path) -> None:
    limit, most = 1_500_000, 0  # twelve of the 24 shards
    dataset = cached(remote, s3.storage, tmp_path, limit)
    ended = threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.is_set():
            most = max(most, _bytes(tmp_path))
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        delivered, files = stream(dataset, 5 * STEPS, slice(0, 32))
    finally:
        ended.set()
        watcher.join()
    assert delivered == stream(local, 5 * STEPS, slice(0, 32))[0]
    assert limit / 2 < most <= limit
    assert files._fetcher.counters["requests"] > len(ROWS)  # what was evicted came again


def test_a_cache_that_is_too_small_says_so(
    s3: S3, remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drivetrain_pipelines.stream.cache._SPACE_TIMEOUT_S", 0.5)
    with pytest.raises(InputError, match=r"data\.cache_bytes: got 300000 bytes, all in use"):
        stream(cached(remote, s3.storage, tmp_path, 300_000), 10)


def test_a_copy_that_decays_is_fetched_anew(s3: S3, local: Dataset, remote: str, tmp_path: Path) -> None:
    stream(cached(remote, s3.storage, tmp_path), STEPS)
    for path in sorted(tmp_path.rglob("train-*.arrow"))[:3]:
        content = bytearray(path.read_bytes())
        content[1000] ^= 1
        path.write_bytes(content)
    delivered, files = stream(cached(remote, s3.storage, tmp_path), STEPS)
    assert delivered == stream(local, STEPS)[0]
    assert files._fetcher.counters["requests"] == 3


def test_ranks_of_a_node_download_once(s3: S3, local: Dataset, remote: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    ranks = [context.Process(target=_rank, args=(remote, s3.storage, tmp_path, rank, results)) for rank in range(2)]
    for process in ranks:
        process.start()
    found = dict(results.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join()
    whole, _ = stream(local, STEPS)
    assert [a + b for a, b in zip(found[0][0], found[1][0], strict=True)] == whole
    assert found[0][1] + found[1][1] == len(ROWS)


def _rank(remote: str, storage: StorageSpec, folder: Path, rank: int, results: multiprocessing.Queue) -> None:
    labels, files = stream(cached(remote, storage, folder), STEPS, slice(32 * rank, 32 * rank + 32))
    results.put((rank, (labels, files._fetcher.counters["requests"])))


def test_a_killed_download_leaves_nothing_that_counts(s3: S3, local: Dataset, remote: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    s3.faults.slow_first_byte = 0.5
    results = context.Queue()
    victim = context.Process(target=_rank, args=(remote, s3.storage, tmp_path, 0, results))
    victim.start()
    while not list(tmp_path.rglob("*.part")):
        assert victim.is_alive()
        time.sleep(0.01)
    victim.kill()
    victim.join()
    s3.faults.slow_first_byte = 0
    assert stream(cached(remote, s3.storage, tmp_path), STEPS)[0] == stream(local, STEPS)[0]


def test_anonymous_access_is_refused_where_it_is_not_granted(s3: S3, remote: str) -> None:
    anonymous = s3.direct.model_copy(update={"anonymous": True})
    with pytest.raises(Exception, match=r"(?i)denied|forbidden"):
        open_storage(f"{remote}/manifest.json", anonymous)[0].cat_file(f"{remote}/manifest.json")


@pytest.mark.parametrize(
    ("keys", "profile", "given"),
    [
        ({}, None, "no credentials"),
        ({"AWS_ACCESS_KEY_ID": "other", "AWS_SECRET_ACCESS_KEY": "x" * 40}, None, "credentials that were refused"),
        ({"AWS_SECRET_ACCESS_KEY": "x" * 40}, None, "no credentials"),
        (None, "no-such-profile", "credentials that cannot be used"),
    ],
)
def test_wrong_credentials_are_an_error_of_the_input_at_once(
    s3: S3,
    remote: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    keys: dict[str, str] | None,
    profile: str,
    given: str,
) -> None:
    """Wherever storage is used; no attempt is repeated, and no text of a client stands alone."""
    import s3fs

    if keys is not None:
        for name in KEYS:
            monkeypatch.delenv(name, raising=False)
        for name, value in keys.items():
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    storage = s3.direct.model_copy(update={"profile": profile})
    folder = StorageFolder(remote, storage)
    filesystem, path = open_storage(f"{remote}/manifest.json", storage)
    spec = DataSpec.model_validate(
        {"name": "toy", "source": f"{remote}/a.csv", "columns": ["x"], "storage": storage.model_dump()}
    )
    target = tmp_path / "target"
    target.write_bytes(b"1")
    try:
        for use in (
            lambda: folder.read("manifest.json"),
            lambda: folder.write("other", b"1"),
            folder.files,
            lambda: Fetcher(filesystem).fetch(path, ["0"], target),
            lambda: find(spec, str(tmp_path), tmp_path, tmp_path),
        ):
            with pytest.raises(InputError, match=given) as caught:
                use()
            assert "AWS_ACCESS_KEY_ID" in caught.value.fix
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def test_a_missing_manifest_is_named(s3: S3, tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match=r"s3://.*/nowhere/manifest\.json is corrupt: the file is missing"):
        Manifest.read(StorageFolder(f"{s3.url}/nowhere", s3.direct))


def _bytes(folder: Path) -> int:
    """Return the bytes in the cache at one time: files change only under this lock."""
    sizes = {}
    for path in folder.rglob(".eviction.lock"):
        with path.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for file in path.parent.iterdir():
                with suppress(FileNotFoundError):
                    status = file.stat()
                    sizes[status.st_ino] = status.st_size
    return sum(sizes.values())
