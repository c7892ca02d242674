from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from drivetrain_pipelines.errors import PrepareError
from drivetrain_pipelines.prepare.packing import best_fit_decreasing, fit, pieces_of
from drivetrain_pipelines.prepare.splitting import AUTO, Splitter, contents_of
from drivetrain_pipelines.prepare.units import UnitMaker
from drivetrain_pipelines.raw.conversions.recordings import log_mel
from drivetrain_pipelines.spec import AudioSpec, DataSpec, ImageSpec
from drivetrain_pipelines.storage.shards import unigram_entropy
from drivetrain_pipelines.stream.columns import Ragged
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.unit.builds import ENCODER, Build, prepared, rows_of, spec_of, texts_table


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
    tokens, segments = fit(pieces_of([np.array([1, 2, 3]), np.array([4, 5]), np.arange(10, 17)], 5), 5, padding=0)
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
    for packing, columns in (("concatenate", {"tokens"}), ("fit", {"tokens", "segments"})):
        made = Build(spec_of(sequence_length=15, packing=packing), [texts_table(texts)], split="train")
        (batch,) = made.batches["train"]
        assert set(batch.schema.names) == columns
        tokens = batch.column("tokens").values.to_numpy().reshape(-1, 16)
        assert (tokens == ENCODER.end).sum() >= 2
        padding = (batch.column("segments").values.to_numpy() == 0).sum() if packing == "fit" else 0
        assert sum(made.token_counts) == tokens.size - padding


def png(color: tuple[int, int, int]) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (9, 5), color).save(sink, "PNG")
    return sink.getvalue()


def test_images_become_arrays(tmp_path: Path) -> None:
    for number in range(20):
        name = "abc"[number % 3]
        (tmp_path / "raw" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / name / f"{number}.png").write_bytes(png((255, number, 9)))
    (tmp_path / "raw" / "b" / "99.png").write_bytes(b"no picture")
    strict = DataSpec(source=str(tmp_path / "raw"), image=ImageSpec(height=4, width=6), eval_fraction=0.3)
    with pytest.raises(PrepareError, match=r"99\.png.*on_error"):
        prepared(strict, tmp_path)
    lenient = strict.model_copy(update={"on_error": "skip"})
    made = prepared(lenient, tmp_path)
    columns = rows_of(made)
    assert isinstance(columns["image"], np.ndarray)
    assert columns["image"].shape[1:] == (4, 6, 3)
    assert set(columns["image"][:, 0, 0, 0].tolist()) == {255}
    number_of = columns["image"][:, 0, 0, 1]
    assert np.asarray(columns["label"])[:, 0].tolist() == (number_of % 3).tolist()
    assert made.manifest.classes == ["a", "b", "c"]
    assert (made.manifest.statistics["records"], made.manifest.statistics["skipped"]) == (20, 1)
    assert made.manifest.rows("train") + made.manifest.rows("eval") == 20
    encoded = lenient.model_copy(update={"image": ImageSpec(height=4, width=6, decode=False)})
    as_files = rows_of(prepared(encoded, tmp_path))["image"]
    assert isinstance(as_files, Ragged)
    decoded = [np.asarray(Image.open(io.BytesIO(as_files.row(n).tobytes())))[0, 0, 1] for n in range(len(number_of))]
    assert decoded == number_of.tolist()  # the same rows are held out


def test_a_tone_is_loudest_at_its_pitch(tmp_path: Path) -> None:
    import soundfile

    spec = AudioSpec(seconds=0.5, mels=40)
    (tmp_path / "raw" / "tones").mkdir(parents=True)
    for number in range(20):
        tone = np.sin(2 * np.pi * 1000 * np.arange(22050) / 22050 + number)
        soundfile.write(tmp_path / "raw" / "tones" / f"{number}.flac", tone, 22050)
    columns = rows_of(prepared(DataSpec(source=str(tmp_path / "raw"), audio=spec, eval_fraction=0.3), tmp_path))
    mel = np.asarray(columns["mel"])[0]
    assert mel.shape == (48, 40)
    centres = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 42)[1:-1] / 2595) - 1)
    assert abs(centres[mel.mean(axis=0).argmax()] - 1000) < 100
    assert log_mel(np.zeros(8000, np.float32), spec).max() < -20


@pytest.mark.parametrize("spec", [{}, {"columns": ["x"]}, {"image": ImageSpec(height=2, width=2)}])
def test_no_records_make_no_units(spec: dict) -> None:
    made = Build(spec_of(**spec), [texts_table([]).select([])])
    assert made.batches == {"train": [], "eval": []}
    assert UnitMaker(spec_of(**spec), ENCODER).make(texts_table([]), AUTO).batches == {}


def test_padding_is_not_counted() -> None:
    spec = spec_of(sequence_length=63, packing="fit")
    made = Build(spec, [texts_table(["one", "two", "three"])], split="train")
    assert 0 < sum(made.token_counts) < 20


def test_columns_stay_as_they_are(tmp_path: Path) -> None:
    rows = "".join(f'{{"x": [{n}.0, 2.0], "y": {n}, "other": "a"}}\n' for n in range(60))
    (tmp_path / "a.jsonl").write_text(rows)
    spec = DataSpec(source=str(tmp_path / "a.jsonl"), columns=["x", "y"], eval_fraction=0.3)
    made = prepared(spec, tmp_path)
    columns = [rows_of(made, split) for split in ("train", "eval")]
    y = np.concatenate([np.asarray(some["y"])[:, 0] for some in columns])
    x = np.concatenate([np.asarray(some["x"]) for some in columns])
    assert sorted(y.tolist()) == list(range(60))
    assert x.tolist() == [[float(n), 2.0] for n in y]
    with pytest.raises(PrepareError, match="'z'"):
        prepared(spec.model_copy(update={"columns": ["z"]}), tmp_path)
    (tmp_path / "a.jsonl").write_text('{"x": [1.0], "y": 1}\n{"x": [2.0], "y": null}\n')
    with pytest.raises(PrepareError, match="line 2: column 'y': it is empty"):
        prepared(spec, tmp_path)


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


@given(values=st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=1, max_size=20, unique=True))
def test_numbers_have_one_content_in_every_type(values: list[int]) -> None:
    """Different numbers have different contents, also beyond the whole numbers of float64."""
    contents = contents_of([np.array(values, np.int64)])
    assert len(set(contents)) == len(values)
    for value, content in zip(values, contents, strict=True):
        if value >= 0:
            assert contents_of([np.array([value], np.uint64)]) == [content]
        if int(float(value)) == value:
            assert contents_of([np.array([value], np.float64)]) == [content]


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
    made = prepared(spec, tmp_path)
    patients = {}
    for split in ("train", "eval"):
        columns = rows_of(made, split)
        images, masks = np.asarray(columns["image"]), np.asarray(columns["mask"])
        assert ((images[..., 0] > 100) == masks).all()
        patients[split] = set(np.asarray(columns["patient"])[:, 0].tolist())
    assert len(patients["train"] | patients["eval"]) == 20
    assert not patients["train"] & patients["eval"]
