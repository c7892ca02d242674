from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from drivetrain_pipelines.errors import PrepareError
from drivetrain_pipelines.prepare.audio import log_mel
from drivetrain_pipelines.prepare.packing import best_fit_decreasing, fit
from drivetrain_pipelines.prepare.preprocessor import Preprocessor
from drivetrain_pipelines.prepare.samples import maker_of
from drivetrain_pipelines.prepare.splitting import AUTO, Splitter
from drivetrain_pipelines.prepare.tokenizer import train_tokenizer
from drivetrain_pipelines.raw.chunks import Chunk
from drivetrain_pipelines.raw.records import Records
from drivetrain_pipelines.spec import AudioSpec, DataSpec, ImageSpec
from drivetrain_pipelines.storage.arrow_types import numbers_of
from drivetrain_pipelines.storage.folder import StorageFolder
from drivetrain_pipelines.storage.shards import unigram_entropy
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

TRAIN = Splitter("train", 0.1)


@given(lengths=st.lists(st.integers(1, 100), max_size=200))
def test_packs_hold_every_document_once_and_never_overflow(lengths: list[int]) -> None:
    bins = best_fit_decreasing(lengths, 100)
    assert sorted(item for items in bins for item in items) == list(range(len(lengths)))
    assert all(sum(lengths[item] for item in items) <= 100 for items in bins)
    assert len(bins) <= sum(lengths) * 2 / 100 + 1  # two half-empty bins would have been combined


def test_packs_of_real_lengths_are_full() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(6.2, 1.1, 4000), 8, 2048).astype(int)
    assert lengths.sum() / (2048 * len(best_fit_decreasing(lengths.tolist(), 2048))) > 0.999


def test_segments_name_the_documents() -> None:
    tokens, segments = fit([np.array([1, 2, 3]), np.array([4, 5]), np.arange(10, 17)], 5, padding=0)
    assert sorted(tokens.reshape(-1).tolist()) == sorted([1, 2, 3, 4, 5, *range(10, 17), 0, 0, 0])
    for row, segment in zip(tokens, segments, strict=True):
        assert (segment[row == 0] == 0).all()
    joint = next(row for row in range(len(tokens)) if 1 in tokens[row])
    assert tokens[joint].tolist() == [1, 2, 3, 4, 5] or 0 in tokens[joint] or 15 in tokens[joint]


def test_the_eval_split_is_stable() -> None:
    """Held-out samples do not change when data is added, and duplicates go to the same split."""
    contents = [f"document {i}".encode() for i in range(2000)]
    splitter = Splitter(AUTO, 0.1)
    held_out = set(splitter.groups(contents)["eval"].tolist())
    assert 140 < len(held_out) < 260
    more = [b"new", *contents, *contents]
    again = splitter.groups(more)["eval"].tolist()
    assert {n - 1 for n in again if 0 < n <= 2000} == held_out == {n - 2001 for n in again if n > 2000}


def test_documents_are_ended_and_packed() -> None:
    texts = ["one two three"] * 3 + ["four five"] * 4
    tokenizer = train_tokenizer(texts, 300)
    for packing, columns in (("concatenate", {"tokens"}), ("fit", {"tokens", "segments"})):
        spec = DataSpec(source="x", sequence_length=15, packing=packing)
        made = maker_of(spec, tokenizer).make(Records(pa.table({"text": texts})), TRAIN)
        batch = made.batches["train"]
        assert set(batch.schema.names) == columns
        tokens = batch.column("tokens").values.to_numpy().reshape(-1, 16)
        end = tokenizer.token_to_id("<|endoftext|>")
        assert (tokens == end).sum() >= 2
        padding = (batch.column("segments").values.to_numpy() == 0).sum() if packing == "fit" else 0
        assert sum(made.token_counts) == tokens.size - padding


def test_images_become_arrays(tmp_path: Path) -> None:
    def png(color: tuple[int, int, int]) -> bytes:
        sink = io.BytesIO()
        Image.new("RGB", (9, 5), color).save(sink, "PNG")
        return sink.getvalue()

    table = pa.table(
        {"file": ["a", "b", "c"], "bytes": [png((255, 0, 0)), b"no picture", png((0, 0, 9))], "label": [1, 0, 2]}
    )
    strict = DataSpec(source="x", image=ImageSpec(height=4, width=6))
    with pytest.raises(PrepareError, match=r"b cannot be decoded: it is not an image known to Pillow\. .*on_error"):
        maker_of(strict, None).make(Records(table), TRAIN)
    records = Records(table)
    batch = maker_of(strict.model_copy(update={"on_error": "skip"}), None).make(records, TRAIN).batches["train"]
    assert batch.column("image").to_numpy_ndarray().shape == (2, 4, 6, 3)
    assert batch.column("image").to_numpy_ndarray()[0, 0, 0].tolist() == [255, 0, 0]
    assert batch.column("label").to_pylist() == [1, 2]
    assert len(records.skipped) == 1
    raw = strict.model_copy(update={"image": ImageSpec(height=4, width=6, decode=False)})
    assert maker_of(raw, None).make(Records(table), TRAIN).batches["train"].column("image")[1].as_py() == b"no picture"


def test_a_tone_is_loudest_at_its_pitch() -> None:
    import soundfile

    spec = AudioSpec(seconds=0.5, mels=40)
    sink = io.BytesIO()
    soundfile.write(sink, np.sin(2 * np.pi * 1000 * np.arange(22050) / 22050), 22050, format="FLAC")
    table = pa.table({"file": ["a"], "bytes": [sink.getvalue()], "label": [3]})
    batch = maker_of(DataSpec(source="x", audio=spec), None).make(Records(table), TRAIN).batches["train"]
    (mel,) = batch.column("mel").to_numpy_ndarray()
    assert mel.shape == (48, 40)
    centres = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 42)[1:-1] / 2595) - 1)
    assert abs(centres[mel.mean(axis=0).argmax()] - 1000) < 100
    assert log_mel(np.zeros(8000, np.float32), spec).max() < -20


@pytest.mark.parametrize("spec", [{}, {"columns": ["x"]}, {"image": ImageSpec(height=2, width=2)}])
def test_no_records_make_no_samples(spec: dict) -> None:
    tokenizer = train_tokenizer(["some text"], 300)
    made = maker_of(DataSpec(source="x", **spec), tokenizer).make(Records(pa.table({})), TRAIN)
    assert made.batches == {}
    assert sum(made.token_counts) == 0


def test_padding_is_not_counted() -> None:
    tokenizer = train_tokenizer(["one two three"], 300)
    spec = DataSpec(source="x", sequence_length=63, packing="fit")
    made = maker_of(spec, tokenizer).make(Records(pa.table({"text": ["one", "two", "three"]})), TRAIN)
    assert sum(made.token_counts) < 20


def test_columns_stay_as_they_are() -> None:
    table = pa.table({"x": [[1.0, 2.0], [3.0, 4.0]], "y": [1, 2], "other": ["a", "b"]})
    spec = DataSpec(source="x", columns=["x", "y"])
    batch = maker_of(spec, None).make(Records(table), TRAIN).batches["train"]
    assert batch.to_pylist() == [{"x": [1.0, 2.0], "y": 1}, {"x": [3.0, 4.0], "y": 2}]
    with pytest.raises(PrepareError, match="no column 'z'; they have x, y, other"):
        maker_of(spec.model_copy(update={"columns": ["z"]}), None).make(Records(table), TRAIN)
    with pytest.raises(PrepareError, match="1 empty values"):
        maker_of(spec, None).make(Records(pa.table({"x": [[1.0], [2.0]], "y": [1, None]})), TRAIN)


def test_unigram_entropy() -> None:
    assert unigram_entropy([1, 1, 0, 1, 1]) == pytest.approx(np.log(4))
    assert unigram_entropy([9, 0]) == 0


def test_groups_are_not_divided() -> None:
    contents = [f"sample {i}".encode() for i in range(600)]
    speakers = [f"speaker {i % 30}".encode() for i in range(600)]
    groups = Splitter(AUTO, 0.2).groups(contents, speakers)
    train, held_out = ({i % 30 for i in groups[split].tolist()} for split in ("train", "eval"))
    assert held_out
    assert not train & held_out
    assert len(groups["train"]) + len(groups["eval"]) == 600


def test_a_smaller_train_fraction_is_a_subset_of_a_larger_one() -> None:
    contents = [f"sample {i}".encode() for i in range(4000)]
    whole = Splitter(AUTO, 0.1).groups(contents)
    kept = [set(Splitter(AUTO, 0.1, share).groups(contents)["train"].tolist()) for share in (0.125, 0.5, 1)]
    assert kept[0] < kept[1] < kept[2] == set(whole["train"].tolist())
    assert 0.1 < len(kept[0]) / len(kept[2]) < 0.15
    assert (Splitter("eval", 0.1, 0.1).groups(contents)["eval"] == np.arange(4000)).all()


def test_additional_arrays_and_a_reader_of_the_job(tmp_path: Path) -> None:
    """A file of an unknown format becomes images with masks; each image keeps its mask."""
    (tmp_path / "shapes.py").write_text(
        "import numpy as np\n"
        "def read(path):\n"
        "    for number in map(int, path.read_text().split()):\n"
        "        pixels = np.full((4, 4), number, np.uint8)\n"
        "        yield {'file': f'{path.name}/{number}', 'bytes': b'P5 4 4 255 ' + pixels.tobytes(),\n"
        "               'label': number % 2, 'mask': pixels > 100, 'patient': number // 10}\n"
    )
    (tmp_path / "numbers.odd").write_text(" ".join(str(n) for n in range(200)))
    spec = DataSpec(
        source=str(tmp_path / "numbers.odd"),
        reader="shapes:read",
        image=ImageSpec(height=4, width=4, mode="L"),
        columns=["mask", "patient"],
        split_by="patient",
        eval_fraction=0.3,
    )
    folder = StorageFolder(str(tmp_path / "made"))
    chunk = Chunk("any", (str(tmp_path / "numbers.odd"),))
    result = Preprocessor(spec, folder, tmp_path).write_chunk(AUTO, 0, chunk)
    patients = {}
    for split, shard in result.shards.items():
        batch = pa.ipc.open_file(folder.read(shard.file)).get_batch(0)
        images, masks = (numbers_of(batch.column(name)) for name in ("image", "mask"))
        assert ((images[..., 0] > 100) == masks).all()
        patients[split] = set(batch.column("patient").to_pylist())
    assert len(patients["train"] | patients["eval"]) == 20
    assert not patients["train"] & patients["eval"]
