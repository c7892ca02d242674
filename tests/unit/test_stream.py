from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from drivetrain_pipelines.errors import CorruptFileError
from drivetrain_pipelines.storage.checksums import verify_bytes
from drivetrain_pipelines.storage.folder import StorageFolder
from drivetrain_pipelines.storage.json_files import read_json, write_json
from drivetrain_pipelines.storage.shards import Manifest, encode_shard
from drivetrain_pipelines.stream.dataset import Dataset
from drivetrain_pipelines.stream.reader import StreamReader
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.datasets import assert_rows, make_dataset


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.integers(1, 60), min_size=1, max_size=8), seed=st.integers(0, 1000))
def test_any_rows_of_shards_of_any_size(tmp_path_factory: pytest.TempPathFactory, rows: list[int], seed: int) -> None:
    dataset = make_dataset(tmp_path_factory.mktemp("data"), rows)
    samples = np.random.default_rng(seed).integers(0, sum(rows), 17)
    assert_rows(dataset.read("train", samples), samples.tolist())


@pytest.mark.parametrize("kind", [pa.uint8(), pa.int16(), pa.uint32(), pa.float16(), pa.float32(), pa.float64()])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (129,), (4, 7, 3), (32, 32, 3)])
def test_columns_of_any_width(tmp_path: Path, kind: pa.DataType, shape: tuple[int, ...]) -> None:
    """Row widths that do not divide a page, in shards of unequal length, next to another column."""
    folder, everything = StorageFolder(str(tmp_path)), []
    shards, schema = [], None
    for number, count in enumerate([3, 8, 1]):
        values = np.random.default_rng(number).integers(0, 100, (count, *shape)).astype(str(np.dtype(_numpy(kind))))
        column = pa.array(values) if not shape else _nested(values)
        content = encode_shard(pa.record_batch({"a": pa.array(range(count), pa.int8()), "x": column}))
        folder.write(f"{number}.arrow", content)
        shards.append(_shard(f"{number}.arrow", count, content))
        schema = pa.ipc.open_file(content).schema
        everything.append(values)
    Manifest("toy", "v1", schema, {"train": shards}).write(folder)
    samples = np.array([11, 0, 5, 3, 2, 10])
    read = Dataset(str(tmp_path)).read("train", samples)
    expected = np.concatenate(everything)[samples]
    assert np.array_equal(read["x"].reshape(expected.shape), expected)
    assert read["x"].shape == ((6, *shape) if shape else (6, 1))


@pytest.mark.parametrize("sample", [-1, 7])
def test_a_sample_out_of_range_is_an_error(tmp_path: Path, sample: int) -> None:
    with pytest.raises(IndexError, match="7 rows"):
        make_dataset(tmp_path, [3, 4]).read("train", np.array([sample]))


@pytest.mark.parametrize("global_batch", [6, 64])
def test_reader_streams_the_order_and_seeks(tmp_path: Path, global_batch: int) -> None:
    dataset = make_dataset(tmp_path, [20, 13, 50], sources=[0, 0, 1])
    order = dataset.order("train", [3, 1], seed=3, lanes=4, window=4)
    first = np.array([0, 20, 33])
    for start in (0, 4, 1000):
        rows = slice(1, global_batch // 2)
        arena, files = dataset.open("train")
        reader = StreamReader(arena, files, order, global_batch, rows, start * global_batch)
        for batch, step in zip(reader, range(start, start + 40), strict=False):
            shards, places = order.locate(order.positions(step * global_batch, global_batch, rows))
            assert batch.position == step * global_batch
            assert_rows(batch.columns, (first[shards] + places).tolist())
        reader.close()
        arena.close()


def test_the_reader_raises_errors_of_its_thread(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, [20, 20])
    (tmp_path / "train-00001.arrow").write_bytes(b"short")
    arena, files = dataset.open("train")
    reader = StreamReader(arena, files, dataset.order("train", [1], 0, 1, 4), 8, slice(0, 8), 0)
    with pytest.raises(CorruptFileError, match=r"train-00001\.arrow.*5 bytes"):
        for _ in reader:
            pass
    reader.close()
    arena.close()


def test_no_flipped_bit_or_truncation_is_read_silently(tmp_path: Path) -> None:
    """Ten thousand faults, one at a time, in shards and the manifest. Errors name the file and block."""
    draw = random.Random(0)
    dataset = make_dataset(tmp_path, [400, 300])
    whole = {path: path.read_bytes() for path in tmp_path.iterdir()}
    paths = sorted(whole)
    assert len(paths) == 3
    for number in range(10_000):
        path = paths[number % 3]
        damaged = bytearray(whole[path])
        at = draw.randrange(len(damaged))
        if flip := draw.random() < 0.9:
            damaged[at] ^= 1 << draw.randrange(8)
        else:
            del damaged[at:]
        path.write_bytes(damaged)
        with pytest.raises(CorruptFileError, match=path.name) as caught:
            _read_everything(tmp_path, None if path.name == "manifest.json" else dataset)
        if flip and path.suffix == ".arrow":
            assert "block 0" in str(caught.value)
        path.write_bytes(whole[path])


def _read_everything(folder: Path, dataset: Dataset | None) -> None:
    arena, files = (dataset or Dataset(str(folder))).open("train")
    try:
        for shard in range(2):
            arena.map_shard(shard, files.acquire(shard))
    finally:
        arena.close()


def test_the_error_names_the_block() -> None:
    with pytest.raises(CorruptFileError, match=r"somewhere.*block 1 "):
        verify_bytes("somewhere", memoryview(bytes((8 << 20) + 1)), [_digest(bytes(8 << 20)), "0"])


def test_manifest_round_trip(tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path, [3]).manifest
    assert Manifest.read(StorageFolder(str(tmp_path))) == manifest
    (tmp_path / "train-00000.arrow").unlink()
    with pytest.raises(CorruptFileError, match="train-00000"):
        manifest.check_sizes(StorageFolder(str(tmp_path)))


def test_atomic_json_leaves_nothing_when_it_fails(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert read_json(tmp_path / "a.json") == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_the_error_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match="nowhere"):
        read_json(tmp_path / "nowhere")


def test_memory_stays_flat(tmp_path: Path) -> None:
    """Reading a dataset many times uses no additional memory, except for pages of the mapped files."""
    own = _own_memory_while_reading(make_dataset(tmp_path, [20_000] * 8), "label", 3000)
    assert max(own) - own[0] < 16 << 20


@pytest.mark.slow
def test_memory_stays_flat_over_two_gigabytes(tmp_path: Path) -> None:
    """The same for more than an epoch of 2 GiB, in which every byte is read; at most a few batches are held."""
    folder, width, rows = StorageFolder(str(tmp_path)), 1 << 20, 64
    draw = np.random.default_rng(0)
    shards = []
    for number in range(32):
        values = draw.integers(0, 256, (rows, width), dtype=np.uint8)
        content = encode_shard(pa.record_batch({"x": _nested(values)}))
        folder.write(f"{number}.arrow", content)
        shards.append(_shard(f"{number}.arrow", rows, content))
    Manifest("large", "v1", pa.ipc.open_file(content).schema, {"train": shards}).write(folder)
    del values, content
    before = _own_memory()
    own = _own_memory_while_reading(Dataset(str(tmp_path)), "x", 300, batch_rows=8)
    assert max(own) - own[0] < 16 << 20
    assert own[0] - before < 64 << 20  # three batches of 8 MiB, and the index


def _own_memory_while_reading(dataset: Dataset, column: str, batches: int, batch_rows: int = 512) -> list[int]:
    """Return the anonymous memory of this process at five points during some batches."""
    arena, files = dataset.open("train")
    reader = StreamReader(arena, files, dataset.order("train", [1], 0, 8, 1024), batch_rows, slice(0, batch_rows), 0)
    own = []
    for batch, number in zip(reader, range(batches), strict=False):
        assert len(batch.columns[column]) == batch_rows
        if number % (batches // 6) == batches // 6 - 1:
            own.append(_own_memory())
    reader.close()
    arena.close()
    return own


def test_the_caller_allocates_the_memory_of_batches(tmp_path: Path) -> None:
    """For example in page-locked memory, from which a GPU copies directly."""
    dataset, chosen = make_dataset(tmp_path, [50]), []

    def allocate(shape: tuple[int, ...], dtype) -> np.ndarray:
        chosen.append(np.zeros(shape, dtype))
        return chosen[-1]

    arena, files = dataset.open("train")
    order = dataset.order("train", [1], 0, 1, 16)
    reader = StreamReader(arena, files, order, 8, slice(0, 8), 0, allocate=allocate)
    batch = next(iter(reader))
    assert any(batch.columns["tokens"] is array for array in chosen)
    assert any(batch.columns["label"] is array for array in chosen)
    reader.close()
    arena.close()


def _own_memory() -> int:
    """Return the memory of this process that is not backed by files."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon"))) * 1024


def _numpy(kind: pa.DataType) -> str:
    return {pa.float16(): "float16", pa.float32(): "float32", pa.float64(): "float64"}.get(kind, str(kind))


def _nested(values: np.ndarray) -> pa.Array:
    if values.ndim > 2:
        return pa.FixedShapeTensorArray.from_numpy_ndarray(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def _shard(file: str, rows: int, content: pa.Buffer):
    from drivetrain_pipelines.storage.checksums import block_digests
    from drivetrain_pipelines.storage.shards import Shard

    return Shard(file, rows, content.size, block_digests(memoryview(content)))


def _digest(content: bytes) -> str:
    from drivetrain_pipelines.storage.checksums import block_digests

    return block_digests(content)[0]
