"""The shards of a dataset depend on its files and settings only: not on the chunks, the actors or an interruption."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from drivetrain.home import Home
from drivetrain_pipelines.errors import InputError, PrepareError
from drivetrain_pipelines.prepare import prepare as preparation
from drivetrain_pipelines.prepare.prepare import Prepared, find, prepare
from drivetrain_pipelines.prepare.preprocessor import first_bytes
from drivetrain_pipelines.prepare.tokenizer import TextEncoder, load_tokenizer
from drivetrain_pipelines.spec import AudioSpec, DataSpec, ImageSpec, MixtureSpec
from drivetrain_pipelines.storage.folder import StorageFolder
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from tests.unit.builds import LocalPool, rows_of

WORDS = [
    "the",
    "river",
    "runs",
    "to",
    "the",
    "sea",
    "and",
    "comes",
    "back",
    "as",
    "rain",
    "on",
    "the",
    "hills",
    "above",
    "the",
    "town",
]


def sentences(seed: int, number: int) -> list[str]:
    random = Random(seed)
    return [" ".join(random.choices(WORDS, k=random.randint(1, 12))) + f" {n}." for n in range(number)]


def write_text(folder: Path) -> None:
    """Many short files, empty ones, one of several windows, one that is compressed."""
    for number, sentence in enumerate(sentences(0, 150)):
        (folder / f"short-{number:03d}.txt").write_text("" if number % 9 == 0 else sentence)
    (folder / "long.txt").write_text("\n".join(sentences(1, 9000)))
    (folder / "packed.txt.gz").write_bytes(gzip.compress("\n".join(sentences(2, 300)).encode(), mtime=0))


def rows(seed: int, number: int) -> list[dict[str, Any]]:
    return [
        {"text": text, "label": ("sea", "land")[n % 2], "x": n if n < number // 2 else n / 2, "by": f"author {n % 20}"}
        for n, text in enumerate(sentences(seed, number))
    ]


def write_jsonl(folder: Path) -> None:
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows(0, 400))))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows(1, 99))).encode(), mtime=0))
    (folder / "c.jsonl").write_text("\n\n")
    for number, row in enumerate(rows(2, 9)):
        (folder / f"d-{number}.jsonl").write_text(json.dumps(row))


def write_parquet(folder: Path) -> None:
    """Files of other types, and one without rows."""
    for number, kind in enumerate((pa.int16(), pa.float32(), pa.uint8(), pa.bool_())):
        x = pa.array([n * number % 2 if kind == pa.bool_() else n % 100 for n in range(400)]).cast(kind)
        parquet.write_table(
            pa.table({"x": x, "text": sentences(number, 400)}), folder / f"{number}.parquet", row_group_size=30
        )
    parquet.write_table(
        pa.table({"x": pa.array([], pa.int8()), "text": pa.array([], pa.string())}), folder / "e.parquet"
    )


def write_images(folder: Path) -> None:
    for number in range(60):
        path = folder / ("sea", "land", "sky")[number % 3] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), number % 50, np.uint8)).save(path)


def write_audio(folder: Path) -> None:
    import soundfile

    for number in range(20):
        soundfile.write(folder / f"{number}.wav", np.sin(np.arange(2000) / (number % 9 + 2)), 8000)


KINDS: dict[str, tuple[Callable[[Path], None], dict[str, Any]]] = {
    "running text": (write_text, {}),
    "documents": (write_jsonl, {}),
    "documents of groups": (write_jsonl, {"split_by": "by"}),
    "fit": (write_jsonl, {"packing": "fit", "train_fraction": 0.7}),
    "pad": (write_jsonl, {"packing": "pad"}),
    "columns": (write_jsonl, {"columns": ["x"]}),
    "columns of Parquet": (write_parquet, {"columns": ["x"]}),
    "texts of Parquet": (write_parquet, {"packing": "fit"}),
    "images": (write_images, {"image": ImageSpec(height=4, width=4)}),
    "encoded images": (write_images, {"image": ImageSpec(height=4, width=4, decode=False)}),
    "recordings": (write_audio, {"audio": AudioSpec(seconds=0.2, mels=8)}),
}


def spec_of(kind: str, folder: Path, **changed: Any) -> DataSpec:
    write, settings = KINDS[kind]
    (folder / "raw").mkdir()
    write(folder / "raw")
    common = {"tokenizer": {"vocab_size": 290}, "sequence_length": 31, "eval_fraction": 0.3, "shard_bytes": 2048}
    return DataSpec.model_validate({"source": str(folder / "raw"), **common, **settings, **changed})


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Prepared]:
    """Return a function that prepares a dataset with actors in this process."""

    def make(spec: DataSpec, home: Path, actors: int = 1, seed: int = 0) -> Prepared:
        monkeypatch.setattr(preparation, "ActorPool", partial(LocalPool, Random(seed)))
        places = Home(home)
        return prepare(spec, str(places.datasets), places.downloads, home, actors, lambda *_: None)

    return make


def contents(made: Prepared) -> dict[str, bytes]:
    assert made.folder.local
    return {path.name: path.read_bytes() for path in made.folder.local.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_and_actors_have_no_effect(kind: str, tmp_path: Path, make: Callable[..., Prepared]) -> None:
    spec = spec_of(kind, tmp_path)
    first = make(spec, tmp_path / "0")
    expected = contents(first)
    assert len(first.manifest.splits["train"]) > 1
    assert "manifest.json" in expected
    assert find(spec, str(Home(tmp_path / "0").datasets), tmp_path, tmp_path) is not None
    for number, chunk_bytes in enumerate((1024, 3000, 150_000), start=1):
        other = make(spec.model_copy(update={"chunk_bytes": chunk_bytes}), tmp_path / str(number), number, number)
        assert other.manifest.version == first.manifest.version
        assert contents(other) == expected


class KilledError(Exception):
    """The process ended."""


@pytest.mark.parametrize("kind", ["running text", "pad", "columns of Parquet"])
def test_an_interrupted_preparation_resumes(
    kind: str, tmp_path: Path, make: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may end before any of its files is written, and have other chunks the next time."""
    spec = spec_of(kind, tmp_path, chunk_bytes=20_000, shard_bytes=30_000 if kind == "running text" else 2048)
    write, written = StorageFolder.write, count(1)
    limit: list[int] = [1 << 30]
    names: list[str] = []

    def limited(self: StorageFolder, name: str, content: Any) -> None:
        names.append(name)
        if next(written) > limit[0]:
            raise KilledError(name)
        write(self, name, content)

    monkeypatch.setattr(StorageFolder, "write", limited)
    expected = contents(make(spec, tmp_path / "whole"))
    files = next(written) - 1
    assert files > 15
    unfinished = max(Counter(name.split("-")[0] for name in names if name.startswith(".parts")).values())
    for stop in range(0, files, max(1, files // 12)):
        home, limit[0], written = tmp_path / f"stopped-{stop}", stop, count(1)
        with pytest.raises(KilledError):
            make(spec, home, 2, seed=stop)
        limit[0], written = 1 << 30, count(1)
        changed = spec.model_copy(update={"chunk_bytes": 5000}) if stop % 2 else spec
        assert contents(make(changed, home)) == expected
        if changed is spec:  # finished work is not repeated
            assert next(written) - 1 <= files - stop + unfinished


def test_running_text_continues_over_files(tmp_path: Path, make: Callable[..., Prepared]) -> None:
    """All tokens of all files are in the samples, except those at the end that do not fill one."""
    spec = spec_of("running text", tmp_path, eval_source=str(tmp_path / "raw"))
    made = make(spec, tmp_path / "home")
    encoder = TextEncoder(load_tokenizer(made.folder.read("tokenizer.json"), "tokenizer.json"))
    texts = []
    for path in sorted((tmp_path / "raw").iterdir()):
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        texts.append(content.decode())
    expected = [
        token for text in texts if text for document in encoder.documents([text]) for token in document.tolist()
    ]
    tokens = np.asarray(rows_of(made)["tokens"]).reshape(-1).tolist()
    assert tokens == expected[: len(tokens)]
    assert made.manifest.statistics["dropped_tokens"] == 2 * (len(expected) - len(tokens)) < 2 * 32
    assert made.manifest.statistics["vocab_size"] == encoder.vocab_size


def test_sources_of_a_mixture_keep_their_shards(tmp_path: Path, make: Callable[..., Prepared]) -> None:
    spec = spec_of("documents", tmp_path)
    (tmp_path / "more").mkdir()
    write_jsonl(tmp_path / "more")
    sources = [MixtureSpec(source=str(tmp_path / name)) for name in ("raw", "more")]
    both = spec.model_copy(update={"source": sources})
    made = [
        make(each, tmp_path / f"{n}")
        for n, each in enumerate((spec, both, both.model_copy(update={"chunk_bytes": 1024})))
    ]
    assert contents(made[1]) == contents(made[2])
    assert {shard.stream for shard in made[1].manifest.splits["train"]} == {0, 1}
    doubled = {split: made[1].manifest.rows(split) for split in ("train", "eval")}
    assert doubled == {split: 2 * made[0].manifest.rows(split) for split in ("train", "eval")}


def test_a_source_without_a_sample_is_named(tmp_path: Path, make: Callable[..., Prepared]) -> None:
    spec = spec_of("documents", tmp_path)
    (tmp_path / "short.jsonl").write_text('{"text": "one"}\n')
    sources = [MixtureSpec(source=str(tmp_path / name)) for name in ("raw", "short.jsonl")]
    with pytest.raises(PrepareError, match=r"data\.source\.1\.source: not one sample for train"):
        make(spec.model_copy(update={"source": sources}), tmp_path / "home")


def test_held_out_records_stay_when_data_is_added(tmp_path: Path, make: Callable[..., Prepared]) -> None:
    spec = spec_of("columns", tmp_path)
    before = make(spec, tmp_path / "before")
    (tmp_path / "raw" / "more.jsonl").write_text("".join(f'{{"x": {n}}}\n' for n in range(1000, 1400)))
    after = make(spec, tmp_path / "after")
    held_out = [set(np.asarray(rows_of(made, "eval")["x"])[:, 0].tolist()) for made in (before, after)]
    assert {x for x in held_out[1] if x < 1000} == held_out[0]
    assert len(held_out[1]) > len(held_out[0])


@given(texts=st.lists(st.text(max_size=8), max_size=12), count=st.integers(1, 60), cut=st.integers(0, 12))
def test_a_tokenizer_is_trained_on_the_first_bytes(texts: list[str], count: int, cut: int) -> None:
    found = "".join(first_bytes(texts, count))
    assert found == "".join(texts).encode()[:count].decode(errors="ignore")


@pytest.mark.parametrize(
    ("content", "settings", "expected"),
    [
        (
            '{"x": 1}\n' * 20,
            {"columns": ["x"]},
            ["not one sample for eval", "data.eval_fraction 0.02 of 20 records", "data.eval_source"],
        ),
        (
            '{"x": 1}\n{"x": 1}\n',
            {"columns": ["x"], "eval_fraction": 0.999999},
            ["not one sample for train", "data.eval_fraction to a smaller"],
        ),
        (
            '{"text": "one"}\n' * 9,
            {},
            ["tokens of 9 records are fewer than the 129 of one sample", "data.sequence_length"],
        ),
        (
            '{"x": "a"}\n' * 7,
            {"columns": ["x"], "on_error": "skip"},
            ["all 7 records are bad", "line 1", "not a number"],
        ),
        ("\n\n", {"columns": ["x"]}, ["no records"]),
    ],
)
def test_what_is_missing_is_named(
    tmp_path: Path, make: Callable[..., Prepared], content: str, settings: dict[str, Any], expected: list[str]
) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(PrepareError) as caught:
        make(DataSpec(source=str(tmp_path / "a.jsonl"), **settings), tmp_path / "home")
    assert [sentence for sentence in expected if sentence not in str(caught.value)] == []


@pytest.mark.parametrize("settings", [{"split_by": "author"}, {"packing": "pad"}, {"packing": "fit"}])
def test_running_text_has_no_documents(tmp_path: Path, make: Callable[..., Prepared], settings: dict[str, Any]) -> None:
    (tmp_path / "a.txt").write_text("one two")
    with pytest.raises(InputError, match=rf"data\.{next(iter(settings))}.*data\.source are running text.*documents"):
        make(DataSpec(source=str(tmp_path / "a.txt"), **settings), tmp_path / "home")


def test_what_is_left_out_is_noted(tmp_path: Path, make: Callable[..., Prepared]) -> None:
    spec = spec_of("columns", tmp_path, on_error="skip")
    for name in ("README.md", "notes.docx"):
        (tmp_path / "raw" / name).write_text("about the data")
    (tmp_path / "raw" / "e.jsonl").write_text('{"x": null}\n' * 400)
    made = make(spec.model_copy(update={"chunk_bytes": 1024}), tmp_path / "home", 3, 1)
    ignored, bad = made.notes
    assert "2 ignored" in ignored
    assert "400 of 908 records (44%) are bad and were left out; the first: " in bad
    assert made.manifest.statistics["skipped"] == 400
    assert [place.split("line ")[1].split(":")[0] for place in made.manifest.skipped] == [str(n) for n in range(1, 11)]
    again = make(spec, tmp_path / "home")
    assert (again.made, again.notes) == (False, made.notes)


@pytest.mark.parametrize("names", [("train", "validation"), ("train", "test")])
def test_a_split_of_the_layout_evaluates(tmp_path: Path, make: Callable[..., Prepared], names: tuple[str, str]) -> None:
    for number, name in enumerate(names):
        (tmp_path / "raw" / name).mkdir(parents=True)
        (tmp_path / "raw" / name / "a.jsonl").write_text("".join(f'{{"x": {number}}}\n' for _ in range(9)))
    made = make(DataSpec(source=str(tmp_path / "raw"), columns=["x"]), tmp_path / "home")
    assert {split: set(np.asarray(rows_of(made, split)["x"])[:, 0].tolist()) for split in ("train", "eval")} == {
        "train": {0},
        "eval": {1},
    }
    assert (made.manifest.rows("train"), made.manifest.rows("eval")) == (9, 9)
