"""Rows of shards that are mapped one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from drivetrain_pipelines.errors import CorruptFileError
from drivetrain_pipelines.stream.arena import ShardArena
from drivetrain_pipelines.stream.dataset import Dataset
from drivetrain_pipelines.stream.files import LocalFiles

from tests.unit.datasets import assert_rows, make_dataset

ROWS = [4, 6, 3]
FIRST = [0, 4, 10]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make_dataset(tmp_path, ROWS)


@pytest.fixture
def files(dataset: Dataset, tmp_path: Path) -> LocalFiles:
    return LocalFiles(tmp_path, dataset.manifest.splits["train"])


@pytest.fixture
def arena(dataset: Dataset) -> Iterator[ShardArena]:
    arena = ShardArena(dataset.manifest.schema, dataset.manifest.splits["train"])
    yield arena
    arena.close()


def test_sizes_are_known_before_anything_is_mapped(arena: ShardArena, dataset: Dataset) -> None:
    sizes = [shard.bytes for shard in dataset.manifest.splits["train"]]
    assert (arena.rows, arena.shards, arena.mapped) == (13, 3, set())
    assert arena.bytes_of([2, 0]) == sizes[2] + sizes[0]
    assert arena.bytes_per_row == sum(sizes) // 13


def test_only_the_shards_that_are_needed_are_mapped(arena: ShardArena, files: LocalFiles) -> None:
    for number in (2, 0):
        arena.map_shard(number, files.acquire(number))
    assert arena.mapped == {0, 2}
    index = arena.index(np.array([2, 0, 2, 0]), np.array([2, 3, 0, 0]))
    assert_rows(arena.gather(index, slice(0, 4), arena.buffers(4)), [12, 3, 10, 0])
    assert_rows(arena.gather(index, slice(1, 3), arena.buffers(2)), [3, 10])


def test_columns_of_equal_width_are_gathered_into_given_buffers(arena: ShardArena, files: LocalFiles) -> None:
    arena.map_shard(0, files.acquire(0))
    index, buffers = arena.index(np.array([0, 0]), np.array([1, 2])), arena.buffers(1)
    assert buffers["blob"] is None  # batches differ in size
    first = arena.gather(index, slice(0, 1), buffers)
    assert first["tokens"] is buffers["tokens"]
    assert_rows(first, [1])
    arena.gather(index, slice(1, 2), buffers)
    assert first["label"].tolist() == [[2]]  # type: ignore[union-attr]


def test_a_shard_can_be_mapped_again(arena: ShardArena, files: LocalFiles) -> None:
    for number in range(3):
        arena.map_shard(number, files.acquire(number))
    arena.unmap_shard(1)
    assert arena.mapped == {0, 2}
    arena.map_shard(1, files.acquire(1))
    index = arena.index(np.array([0, 1, 2]), np.array([0, 5, 0]))
    assert_rows(arena.gather(index, slice(0, 3), arena.buffers(3)), [0, 9, 10])


def test_gathered_batches_outlive_the_arena(dataset: Dataset, files: LocalFiles) -> None:
    arena = ShardArena(dataset.manifest.schema, dataset.manifest.splits["train"])
    arena.map_shard(1, files.acquire(1))
    columns = arena.gather(arena.index(np.array([1]), np.array([1])), slice(0, 1), arena.buffers(1))
    arena.close()
    assert_rows(columns, [5])


def test_a_mapped_shard_is_not_read_again(arena: ShardArena, files: LocalFiles) -> None:
    arena.map_shard(0, files.acquire(0))
    arena.map_shard(0, Path("/nowhere"))
    assert arena.mapped == {0}


@pytest.mark.parametrize(("shard", "row"), [(0, 4), (1, -1), (2, 3)])
def test_a_row_outside_its_shard_is_an_error(arena: ShardArena, shard: int, row: int) -> None:
    with pytest.raises(IndexError, match="the split has 13 rows"):
        arena.index(np.array([0, shard]), np.array([0, row]))


def test_a_corrupt_shard_is_not_mapped(arena: ShardArena, files: LocalFiles) -> None:
    path = files.acquire(1)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    for content, problem in ((bytes(damaged), "block 0"), (whole[:-1], f"{len(whole) - 1} bytes")):
        path.write_bytes(content)
        with pytest.raises(CorruptFileError, match=problem):
            arena.map_shard(1, path)
    path.unlink()
    with pytest.raises(CorruptFileError, match="missing"):
        arena.map_shard(1, path)
    assert arena.mapped == set()
    path.write_bytes(whole)
    arena.map_shard(1, path)
    assert_rows(arena.gather(arena.index(np.array([1]), np.array([0])), slice(0, 1), arena.buffers(1)), [4])


def test_a_shard_with_other_columns_or_rows_than_the_manifest(dataset: Dataset, files: LocalFiles) -> None:
    shards = dataset.manifest.splits["train"]
    other = pa.schema([field for field in dataset.manifest.schema if field.name != "blob"])
    for arena in (
        ShardArena(other, shards),
        ShardArena(dataset.manifest.schema, [replace(shard, rows=shard.rows + 1) for shard in shards]),
    ):
        with pytest.raises(CorruptFileError, match=r"train-00000\.arrow.*differ from the manifest"):
            arena.map_shard(0, files.acquire(0))
        arena.close()


def test_local_files_are_used_in_place(files: LocalFiles, tmp_path: Path) -> None:
    files.prefetch([0, 1, 2])
    assert files.prefetch_bytes == 0  # there is nothing to fetch
    assert files.acquire(2) == tmp_path / "train-00002.arrow"
    files.discard(2)
    assert files.acquire(2).exists()  # the only copy, which stays
    files.release(2)
    files.close()
