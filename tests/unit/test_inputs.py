"""Inputs of `drivetrain predict` become the same samples as in preparation; documents, labels, files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import soundfile
from drivetrain.home import Home
from drivetrain.job.files import with_files
from drivetrain.job.loading import load_job
from drivetrain_pipelines.errors import InputError, PrepareError
from drivetrain_pipelines.prepare.inputs import samples_of, texts_of
from drivetrain_pipelines.prepare.record_reader import RecordReader
from drivetrain_pipelines.prepare.tokenizer import TextEncoder, load_tokenizer, train_tokenizer
from drivetrain_pipelines.raw.chunks import Chunk
from drivetrain_pipelines.raw.sources import fetch
from drivetrain_pipelines.spec import AudioSpec, DataSpec, ImageSpec, StorageSpec
from drivetrain_pipelines.stream.columns import Columns, Ragged
from PIL import Image

from tests.unit.builds import Build, prepared, rows_of

TOKENIZER = train_tokenizer(["one two three four"], 300)
TEXTS = DataSpec(source="x", packing="pad", sequence_length=6, classes=["good", "bad"])


def test_documents_are_padded_or_cut() -> None:
    encoder = TextEncoder(TOKENIZER)
    tokens, dropped = encoder.padded(["one two", "one two three four one two three four"], 6)
    whole = [TOKENIZER.encode(text).ids for text in ("one two", "one two three four one two three four")]
    assert tokens.tolist() == [(whole[0] + [encoder.padding] * 6)[:6], whole[1][:6]]
    assert dropped.tolist() == [0, len(whole[1]) - 6]


def test_a_folder_of_texts_for_each_class(tmp_path: Path) -> None:
    for number in range(30):
        for name, text in (("bad", f"two {number}"), ("good", f"one two {number}")):
            (tmp_path / "raw" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "raw" / name / f"{number}.txt").write_text(text)
    spec = TEXTS.model_copy(update={"source": str(tmp_path / "raw"), "format": "documents", "sequence_length": 40})
    made = prepared(spec, tmp_path)
    tokenizer = load_tokenizer(made.folder.read("tokenizer.json"), "tokenizer.json")
    found = set()
    for split in ("train", "eval"):
        columns = rows_of(made, split)
        tokens = np.asarray(columns["tokens"])
        labels = np.asarray(columns["label"])[:, 0].tolist()
        found |= {(tokenizer.decode(row.tolist()), label) for row, label in zip(tokens, labels, strict=True)}
    assert found == {(f"two {n}", 1) for n in range(30)} | {(f"one two {n}", 0) for n in range(30)}


def test_labels_may_be_names(tmp_path: Path) -> None:
    """Without `data.classes`, the sorted names are the classes."""
    lines = "".join(f"one {n},{('good', 'bad')[n % 2]}\n" for n in range(60))
    (tmp_path / "reviews.csv").write_text(f"text,label\n{lines}")
    named = TEXTS.model_copy(update={"source": str(tmp_path / "reviews.csv"), "eval_fraction": 0.3})
    for spec, classes in ((named, ["good", "bad"]), (named.model_copy(update={"classes": None}), ["bad", "good"])):
        made = prepared(spec, tmp_path)
        assert made.manifest.classes == classes
        labels = [np.asarray(rows_of(made, split)["label"]).sum() for split in ("train", "eval")]
        assert sum(labels) == 30
    with pytest.raises(PrepareError, match=r"'bad' .* is neither one of data\.classes \(good\)"):
        prepared(named.model_copy(update={"classes": ["good"]}), tmp_path)


def _write_texts(folder: Path) -> None:
    lines = "".join(f"one {n} two,{('good', 'bad')[n % 2]}\n" for n in range(40))
    (folder / "data.csv").write_text(f"text,label\n{lines}")


def _write_numbers(folder: Path) -> None:
    """Whole numbers first, so that a chunk has another type than the dataset."""
    lines = "".join(f'{{"x": [{n}, {n / 2 if n > 30 else n}], "y": {n}}}\n' for n in range(40))
    (folder / "data.jsonl").write_text(lines)


def _write_pictures(folder: Path) -> None:
    for number in range(20):
        path = folder / "data" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 9, 3), number * 10, np.uint8)).save(path)


def _write_recordings(folder: Path) -> None:
    for number in range(12):
        path = folder / "data" / "ab"[number % 2] / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.sin(np.arange(3000) / (number + 3)), 8000)


TRANSFORM = "def double(row):\n    return {**row, 'y': row['y'] * 2}\n"


@pytest.mark.parametrize(
    ("write", "settings"),
    [
        (_write_texts, {"packing": "pad", "sequence_length": 6}),
        (_write_texts, {"packing": "fit", "sequence_length": 9}),
        (_write_numbers, {"columns": ["x", "y"]}),
        (_write_numbers, {"columns": ["x", "y"], "label_column": "y"}),
        (_write_numbers, {"columns": ["y"], "transform": "doubling:double"}),
        (_write_pictures, {"image": ImageSpec(height=4, width=4)}),
        (_write_recordings, {"audio": AudioSpec(seconds=0.2, mels=8)}),
    ],
)
def test_inputs_become_the_samples_of_the_training_data(tmp_path: Path, write: Any, settings: dict[str, Any]) -> None:
    """Every record, given as an input, is found in the dataset, and they are all that it has."""
    (tmp_path / "doubling.py").write_text(TRANSFORM)
    write(tmp_path)
    (source,) = tmp_path.glob("data*")
    spec = DataSpec(source=str(source), eval_fraction=0.3, chunk_bytes=1024, shard_bytes=1024, **settings)
    made = prepared(spec, tmp_path)
    tokenizer, given = None, [str(path) for path in sorted(tmp_path.glob("data/*/*"))] or [str(source)]
    if spec.kind == "tokens":
        tokenizer = load_tokenizer(made.folder.read("tokenizer.json"), "tokenizer.json")
        given = [f"one {n} two" for n in range(40)]
    inputs = [samples_of(each, spec, tmp_path, tokenizer, made.manifest.schema) for each in given]
    name = next(name for name in ("tokens", "image", "mel", "x", "y") if name in made.manifest.schema.names)
    found = sorted(row.tobytes() for columns in inputs for row in np.asarray(columns[name]))
    trained = [row.tobytes() for split in ("train", "eval") for row in np.asarray(rows_of(made, split)[name])]
    if spec.packing == "fit":  # one document each, instead of several
        found, trained = (
            sorted(_documents(inputs)),
            list(_documents(rows_of(made, split) for split in ("train", "eval"))),
        )
    assert found == sorted(trained)
    assert np.asarray(inputs[0][name]).dtype == np.asarray(rows_of(made, "train")[name]).dtype


def _documents(samples: Iterable[Columns]) -> Iterator[bytes]:
    """Yield the tokens of each packed document."""
    for columns in samples:
        for row, segments in zip(np.asarray(columns["tokens"]), np.asarray(columns["segments"]), strict=True):
            yield from (row[segments == number].tobytes() for number in range(1, segments.max() + 1))


def test_an_input_may_be_a_text_or_a_file_of_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two")
    inputs = [samples_of(given, TEXTS, tmp_path, TOKENIZER) for given in ("one two", str(tmp_path / "a.txt"))]
    assert np.array_equal(inputs[0]["tokens"], inputs[1]["tokens"])
    assert inputs[0]["tokens"].shape == (1, 6)


def test_an_image_is_converted_like_the_training_data(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    name = "a picture, 100% == #1.png"  # like names of files in a package's folder
    Image.fromarray(pixels).save(tmp_path / name)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    spec = DataSpec(source="x", image=ImageSpec(height=8, width=8))
    found = samples_of(str(tmp_path / name), spec, tmp_path, None)
    assert np.array_equal(found["image"][0], pixels)  # type: ignore[index]
    encoded = samples_of(
        str(tmp_path / "a.png"), DataSpec(source="x", image=ImageSpec(height=8, width=8, decode=False)), tmp_path, None
    )
    assert isinstance(encoded["image"], Ragged)
    assert encoded["image"].row(0).tobytes() == (tmp_path / "a.png").read_bytes()


def test_a_recording_becomes_energies(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(4000) / 5), 8000)
    spec = DataSpec(source="x", audio=AudioSpec(seconds=0.5, mels=20))
    mel = samples_of(str(tmp_path / "a.wav"), spec, tmp_path, None)["mel"]
    assert isinstance(mel, np.ndarray)
    assert mel.shape[0] == 1
    assert mel.shape[2] == 20


def test_every_record_of_a_table_is_a_sample(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,2\n3,4\n")
    found = samples_of(str(tmp_path / "a.csv"), DataSpec(source="x", columns=["x", "y"]), tmp_path, None)
    assert [values.tolist() for values in found.values() if isinstance(values, np.ndarray)] == [[[1], [3]], [[2], [4]]]


def test_an_input_table_needs_no_label(tmp_path: Path) -> None:
    """Its integers get the types of the dataset."""
    (tmp_path / "a.csv").write_text("x\n1\n3\n")
    spec = DataSpec(source="x", columns=["x", "label"])
    schema = pa.schema({"x": pa.float64(), "label": pa.int64()})
    found = samples_of(str(tmp_path / "a.csv"), spec, tmp_path, None, schema)
    assert found["x"].dtype == np.float64  # type: ignore[union-attr]
    assert np.asarray(found["label"]).tolist() == [[0], [0]]


@pytest.mark.parametrize("table", ["x,y\n1,2\n3,4\n", "x\n1\n3\n", "x,y,z\n1,2,a\n3,,b\n"])
def test_an_input_table_needs_no_column_that_only_the_loss_reads(tmp_path: Path, table: str) -> None:
    (tmp_path / "a.csv").write_text(table)
    spec = DataSpec(source="x", columns=["x", "y"], label_column="y" if "z" in table else "label")
    found = samples_of(str(tmp_path / "a.csv"), spec, tmp_path, None)
    assert np.asarray(found["x"]).tolist() == [[1], [3]]
    assert ("y" in found) == ("y" in table)


def test_an_input_table_needs_some_column_of_the_job(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="has none of the columns 'x', 'y'"):
        samples_of(str(tmp_path / "a.csv"), DataSpec(source="x", columns=["x", "y"]), tmp_path, None)


@pytest.mark.parametrize("table", ["text\none\ntwo three\n", "text,label\none,good\ntwo three,unknown\n"])
def test_every_text_of_a_table_is_an_input(tmp_path: Path, table: str) -> None:
    """Its labels do not matter: they are what the model predicts."""
    path = tmp_path / "reviews.csv"
    path.write_text(table)
    rows = np.asarray(samples_of(str(path), TEXTS, tmp_path, TOKENIZER)["tokens"])
    alone = [np.asarray(samples_of(text, TEXTS, tmp_path, TOKENIZER)["tokens"])[0] for text in ("one", "two three")]
    assert np.array_equal(rows, alone)
    assert texts_of(str(path), TEXTS) == ["one", "two three"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("words\none\n", "has no column 'text'; it has 'words'"),
        ("text\n", "at least one record"),
    ],
)
def test_a_table_without_texts_is_reported(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(InputError, match=problem):
        texts_of(str(tmp_path / "a.csv"), TEXTS)


def test_an_input_needs_no_group_key(tmp_path: Path) -> None:
    spec = TEXTS.model_copy(update={"split_by": "author"})
    assert np.asarray(samples_of("one two", spec, tmp_path, TOKENIZER)["tokens"]).shape == (1, 6)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.png", b"no picture", "a file with image for this model"),
        ("missing.png", None, "an existing file"),
        ("a.bin", b"what is this", "files of one format"),
    ],
)
def test_invalid_inputs_are_reported(tmp_path: Path, name: str, content: bytes | None, problem: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=problem):
        samples_of(str(tmp_path / name), DataSpec(source="x", image=ImageSpec(height=8, width=8)), tmp_path, None)


READER = """
import numpy as np


def read(path, colours, sizes):
    for line in colours.read_text().split():
        yield {"image": np.full((4, 4, 3), int(line), np.uint8), "label": int(sizes.read_text())}
"""


def test_additional_files_are_passed_by_name(tmp_path: Path) -> None:
    """A reader may return images as arrays."""
    (tmp_path / "reader_with_files.py").write_text(READER)
    for name, text in (("raw.x", ""), ("colours.txt", "3 4"), ("sizes.txt", "7")):
        (tmp_path / name).write_text(text)
    spec = DataSpec(
        source=str(tmp_path / "raw.x"),
        reader="reader_with_files:read",
        files={"colours": str(tmp_path / "colours.txt"), "sizes": str(tmp_path / "sizes.txt")},
        image=ImageSpec(height=2, width=2),
    )
    records = RecordReader(spec, tmp_path).read(Chunk("any", (str(tmp_path / "raw.x"),)))
    made = Build(spec, [records.table], split="train")
    assert [row["label"] for row in made.rows("train")] == [7, 7]
    assert set(made.batches["train"][0].column("image").storage.values.to_pylist()) == {3, 4}


def test_remote_files_are_fetched_once(tmp_path: Path) -> None:
    """A file or a folder; other content is fetched again, and no partial download remains."""
    elsewhere = fsspec.filesystem("memory")
    elsewhere.pipe("/models/w.bin", b"first")
    elsewhere.pipe("/models/config.json", b"{}")
    storage = StorageSpec()
    first = fetch("memory://models/w.bin", "model.files.w", storage, tmp_path)
    assert first.read_bytes() == b"first"
    assert fetch("memory://models/w.bin", "model.files.w", storage, tmp_path) == first
    folder = fetch("memory://models", "model.files.w", storage, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "w.bin"]
    elsewhere.pipe("/models/w.bin", b"second one")
    assert fetch("memory://models/w.bin", "model.files.w", storage, tmp_path).read_bytes() == b"second one"
    assert not list(tmp_path.rglob("fetch-*"))
    with pytest.raises(PrepareError, match=r"model\.files\.w: memory://models/x\.bin cannot be fetched"):
        fetch("memory://models/x.bin", "model.files.w", storage, tmp_path)


JOB = """
name: fine
data: {source: raw.txt, files: {extra: extra.txt}}
model: {factory: "model:make", files: {weights: pretrained}}
training: {steps: 1, global_batch_size: 2}
"""


def test_a_run_stores_files_by_content(tmp_path: Path) -> None:
    """A later change or removal of the file does not change the run; equal content is stored once."""
    (tmp_path / "pretrained").mkdir()
    for name in ("raw.txt", "extra.txt", "pretrained/w.bin"):
        (tmp_path / name).write_text(name)
    (tmp_path / "model.py").write_text("def make(weights): ...\n")
    (tmp_path / "job.yaml").write_text(JOB)
    home = Home(tmp_path / "home")
    home.path.mkdir()
    spec = with_files(load_job(str(tmp_path)).spec, home)
    assert with_files(spec, home) == spec
    first = Path(spec.model.files["weights"])
    assert first.is_relative_to(home.files)
    (tmp_path / "pretrained" / "w.bin").write_text("other")
    again = with_files(load_job(str(tmp_path)).spec, home)
    assert again.model.files != spec.model.files
    assert again.data.files == spec.data.files
    assert (first / "w.bin").read_text() == "pretrained/w.bin"
    (tmp_path / "extra.txt").unlink()
    with pytest.raises(InputError, match=r"data\.files\.extra"):
        load_job(str(tmp_path))
