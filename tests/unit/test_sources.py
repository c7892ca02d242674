"""The files of a source: layouts, splits, hidden and ignored files, contents that contradict names, odd names."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from drivetrain_pipelines.errors import DrivetrainError, InputError, PrepareError
from drivetrain_pipelines.raw.listing import Listing, check_source, list_source
from drivetrain_pipelines.raw.sources import fetch, open_file
from drivetrain_pipelines.spec import StorageSpec
from drivetrain_pipelines.storage.folder import StorageFolder, open_storage
from drivetrain_pipelines.storage.paths import absolute_path, local_path
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

LOCAL = StorageSpec()
ODD = [
    "data [v2]",
    "a::b",
    "what?",
    "50%20",
    "x#y",
    "st*r",
    " sp ace ",
    "ünï",
    "new\nline",
    "co:lon:",
    "~",
    "~any",
    "%",
]


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


CONTENT = {
    ".txt": b"some text\n",
    ".md": b"# Title\n",
    ".jsonl": b'{"text": "a"}\n',
    ".json": b'[{"text": "a"}]',
    ".csv": b"x,y\n1,2\n",
    ".parquet": b"PAR1 and more",
    ".arrow": b"ARROW1 and more",
    ".png": b"\x89PNG",
    ".gz": gzip.compress(b"some text\n", mtime=0),
    ".zst": zstd(b"some text\n"),
    ".tar": b"tar",
}


def tree(root: Path, *names: str, **contents: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(CONTENT.get(path.suffix, b"anything"))
    for name, content in contents.items():
        (root / name).write_text(content)
    return root


def listed(source: Path | str, format_: str = "auto", *, evaluates: bool = False) -> Listing:
    key = "data.eval_source" if evaluates else "data.source"
    checked = check_source(str(source), key, Path("/"), format_, LOCAL)
    return list_source(checked, format_, LOCAL, Path("/nowhere"), key, evaluates=evaluates)


def names(listing: Listing, root: Path, split: str = "") -> list[str]:
    files = listing.splits[split] if split else listing.files
    return [file.url.removeprefix(f"{root}/") for file in files]


# Which files


def test_a_repository_is_its_data_and_not_its_card(tmp_path: Path) -> None:
    root = tree(tmp_path, "README.md", "data/train-00000-of-00001.parquet", ".gitattributes", "LICENSE")
    found = listed(root)
    assert (found.format, names(found, root)) == ("parquet", ["data/train-00000-of-00001.parquet"])
    assert found.ignored.kinds == {"hidden": 1, "descriptions": 2}
    assert "1 file used (format parquet, split train); 3 ignored (1 hidden, 2 descriptions" in found.summary()


def test_several_formats_are_named_and_refused(tmp_path: Path) -> None:
    root = tree(tmp_path, "a.parquet", "b.csv", "c.csv", "notes.pdf")
    with pytest.raises(
        InputError, match=r"1 of the format parquet \(a.parquet\) and 2 of the format csv \(b.csv\)"
    ) as e:
        listed(root)
    assert "data.format" in str(e.value)
    assert names(listed(root, "csv"), root) == ["b.csv", "c.csv"]
    assert listed(root, "csv").ignored.kinds == {".parquet": 1, ".pdf": 1}
    assert names(listed(root / "*.parquet"), root) == ["a.parquet"]


def test_hidden_files_are_never_data(tmp_path: Path) -> None:
    hidden = (
        ".git/x.png",
        ".ipynb_checkpoints/1.png",
        "__MACOSX/cat/1.png",
        ".DS_Store",
        "cat/._1.png",
        "@eaDir/1.png",
    )
    root = tree(tmp_path, "cat/1.png", "dog/2.png", *hidden)
    found = listed(root)
    assert sorted(found.labels.values()) == ["cat", "dog"]
    assert found.ignored.kinds == {"hidden": len(hidden)}
    assert len(listed(root, "any").files) == 2
    assert names(listed(root / "**" / "*.png"), root) == ["cat/1.png", "dog/2.png"]
    assert names(listed(root / ".git" / "*"), root) == [".git/x.png"]  # its folder is named


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.xyz", "data.format .*data.reader"),
        ("a", "data.format .*data.reader"),
        ("a.zip", "Unpack the archive"),
        ("a.7z", "Unpack the archive"),
        ("a.parquet.gz", "Decompress it"),
        ("a.png.zst", "Decompress it"),
    ],
)
def test_a_file_of_an_unknown_kind_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    root = tree(tmp_path, name)
    for source in (root / name, root):
        with pytest.raises(InputError, match=reason.replace("it", "(it|them)")):
            listed(source)
    assert len(listed(root / name, "any").files) == 1


def test_a_named_format_takes_a_file_of_any_name(tmp_path: Path) -> None:
    tree(tmp_path, "wiki.tokens")
    assert listed(tmp_path / "wiki.tokens", "text").format == "text"
    assert len(listed(tmp_path / "*.tokens", "text").files) == 1


# Splits


def test_splits_by_folder_and_by_name(tmp_path: Path) -> None:
    folders = tree(tmp_path / "1", "train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "test/dog/4.png")
    found = listed(folders)
    assert names(found, folders) == ["train/cat/1.png", "train/dog/2.png"]
    assert names(found, folders, found.evaluation_split) == ["val/cat/3.png"]
    assert {url.rsplit("/", 1)[1]: label for url, label in found.labels.items()} == {
        "1.png": "cat",
        "2.png": "dog",
        "3.png": "cat",
        "4.png": "dog",
    }
    assert "1 ignored (1 split test)" in found.summary(evaluates=True)
    assert "2 ignored (1 split validation, 1 split test)" in found.summary()
    assert names(listed(folders, evaluates=True), folders) == ["val/cat/3.png"]
    files = tree(tmp_path / "2", "wiki.train.txt", "wiki.test.txt")
    assert names(listed(files), files) == ["wiki.train.txt"]
    assert names(listed(files / "*.txt"), files) == ["wiki.train.txt"]
    assert names(listed(files, evaluates=True), files) == ["wiki.test.txt"]
    shards = tree(tmp_path / "3", *(f"plain/{split}-00000-of-00001.parquet" for split in ("train", "test", "more")))
    assert names(listed(shards), shards) == ["plain/train-00000-of-00001.parquet"]
    assert listed(shards).evaluation_split == "test"


@pytest.mark.parametrize(
    "given",
    [
        ["train.csv", "test.csv", "sample_submission.csv"],
        ["train/1.png", "car/1.png"],
        ["a.jsonl", "test.jsonl"],
        ["texts/a.txt", "texts/b.txt", "texts/test/c.txt"],
    ],
)
def test_names_that_are_splits_only_in_part_are_refused(tmp_path: Path, given: list[str]) -> None:
    root = tree(tmp_path, *given)
    for source in (root, root / "**"):
        with pytest.raises(InputError, match="others to none"):
            listed(source)
    for name in given:
        assert names(listed(root / name), root) == [name]


def test_no_split_that_trains(tmp_path: Path) -> None:
    root = tree(tmp_path, "test/cat/1.png", "val/cat/2.png")
    with pytest.raises(InputError, match="one split trains"):
        listed(root)
    assert names(listed(root, evaluates=True), root) == ["val/cat/2.png"]
    assert names(listed(root / "test"), root) == ["test/cat/1.png"]  # named on purpose


def test_titles_are_no_splits(tmp_path: Path) -> None:
    root = tree(tmp_path, "my test results.txt", "how to train a dog.txt.gz", "a.txt")
    with pytest.raises(InputError, match="others to none"):  # "train" with "test" may be splits
        listed(root)
    (root / "how to train a dog.txt.gz").unlink()
    assert len(listed(root).files) == 2


# Hugging Face


def saved(folder: Path, *files: str) -> None:
    tree(folder, *files, "dataset_info.json", "cache-0123.arrow")
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in files]}))


def test_a_saved_dataset_is_what_its_state_lists(tmp_path: Path) -> None:
    saved(tmp_path, "data-00001-of-00002.arrow", "data-00000-of-00002.arrow")
    tree(tmp_path, "other.arrow")
    found = listed(tmp_path)
    assert found.format == "huggingface"
    assert names(found, tmp_path) == ["data-00001-of-00002.arrow", "data-00000-of-00002.arrow"]
    assert found.ignored.kinds == {"descriptions": 2, "other huggingface": 2}
    assert names(listed(tmp_path, "arrow"), tmp_path) == names(found, tmp_path)
    (tmp_path / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(InputError, match=r"missing file data-00001"):
        listed(tmp_path)


def test_a_saved_dictionary_of_datasets(tmp_path: Path) -> None:
    for split in ("train", "test", "unsupervised"):
        saved(tmp_path / split, "data-00000-of-00001.arrow")
    tree(tmp_path, **{"dataset_dict.json": '{"splits": ["train", "test", "unsupervised"]}'})
    found = listed(tmp_path)
    assert names(found, tmp_path) == ["train/data-00000-of-00001.arrow"]
    assert (set(found.splits), found.evaluation_split) == ({"train", "test", "unsupervised"}, "test")
    (tmp_path / "test" / "state.json").unlink()
    with pytest.raises(InputError, match=r"state\.json for each split"):
        listed(tmp_path)


def test_the_cache_of_load_dataset(tmp_path: Path) -> None:
    folder = tmp_path / "imdb" / "plain" / "0.0.0"
    tree(folder, "imdb-train-00000-of-00002.arrow", "imdb-train-00001-of-00002.arrow", "imdb-test.arrow")
    tree(folder, "imdb-unsupervised.arrow", "cache-12.arrow")
    (folder / "dataset_info.json").write_text('{"splits": {"train": {}, "test": {}, "unsupervised": {}}}')
    found = listed(tmp_path)
    assert [Path(name).name for name in names(found, tmp_path)] == [
        "imdb-train-00000-of-00002.arrow",
        "imdb-train-00001-of-00002.arrow",
    ]
    assert set(found.splits) == {"train", "test", "unsupervised"}


CARD = """---
license: mit
configs:
- config_name: default
  data_files:
  - split: train
    path: ["a/*.csv", "b.csv"]
  - split: held_out
    path: c.csv
---
# Title
"""


def test_the_card_of_a_repository_names_the_files(tmp_path: Path) -> None:
    root = tree(tmp_path, "a/1.csv", "a/2.csv", "b.csv", "c.csv", "d.csv", "notes.txt", **{"README.md": CARD})
    found = listed(root)
    assert names(found, root) == ["a/1.csv", "a/2.csv", "b.csv"]
    assert names(found, root, "held_out") == ["c.csv"]
    assert found.ignored.kinds == {"descriptions": 1, "other csv": 1, ".txt": 1}
    (root / "README.md").write_text(CARD.replace("path: c.csv", "path: a/*.csv"))
    with pytest.raises(InputError, match=r"a/1\.csv into several splits"):
        listed(root)
    (root / "README.md").write_text(CARD.replace("path: c.csv", "path: gone/*.csv"))
    with pytest.raises(InputError, match="gone"):
        listed(root)
    (root / "README.md").write_text("---\nconfigs: [{config_name: en, data_files: c.csv}, {config_name: de}]\n---\n")
    with pytest.raises(InputError, match="configurations en, de"):
        listed(root)


# Labels


def test_lists_of_labels(tmp_path: Path) -> None:
    labels = "file,label\n1.png,007\n2.png,07\n./3.png,\n"
    root = tree(tmp_path, "1.png", "2.png", "3.png", "4.png", **{"labels.csv": labels})
    found = listed(root)
    assert found.format == "images"
    assert {name[-5]: found.labels[name] for name in found.labels} == {"1": "007", "2": "07", "3": ""}
    assert names(found, root) == ["1.png", "2.png", "3.png"]
    assert found.ignored.kinds == {"not in the list of labels": 1}
    for text, problem in [
        ("file,label\n9.png,a\n", "1 missing files, the first is 9.png"),
        ("file,label\n1.png,a\n1.png,b\n", "'a' and 'b'"),
        ("name,label\n1.png,a\n", "the columns name, label; file and label are needed"),
        ("file,label\n1.png,a,b\n", "one value for each column"),
        ("file,label\n1.png\n", "one value for each column"),
        ("", "file and label are needed"),
    ]:
        (root / "labels.csv").write_text(text)
        with pytest.raises(PrepareError, match=problem):
            listed(root)


def test_metadata_of_hugging_face(tmp_path: Path) -> None:
    rows = [{"file_name": "1.png", "label": 3}, {"file_name": "a/2.png", "label": True}]
    lines = "\n".join(json.dumps(row) for row in rows)
    root = tree(tmp_path / "1", "1.png", "a/2.png", **{"metadata.jsonl": lines})
    assert sorted(listed(root).labels.values()) == ["1", "3"]
    other = tree(tmp_path / "2", "1.png", "2.png", **{"metadata.csv": "file_name,caption\n1.png,a cat\n"})
    assert listed(other).labels == {}
    assert len(listed(other).files) == 2


def test_a_class_that_can_be_read_in_two_ways(tmp_path: Path) -> None:
    for number, files in enumerate(
        [("cat/in/1.png", "dog/out/2.png"), ("cat/1.png", "2.png"), ("a/1.png", "a/b/2.png")]
    ):
        root = tree(tmp_path / str(number), *files)
        with pytest.raises(InputError, match="may be"):
            listed(root)
        assert not list_source(str(root), "auto", LOCAL, root, "data.source", label_column=None).labels
    root = tree(tmp_path / "shared", "images/cat/1.png", "images/dog/2.png")
    assert sorted(listed(root).labels.values()) == ["cat", "dog"]


# Contents


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.csv", b"PAR1....", "a Parquet file"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), "gzip data"),
        ("a.txt", zstd(b"text"), "zstd data"),
        ("a.parquet", b"\n<!DOCTYPE html><html>Not found", "a web page"),
        ("a.jsonl", b"<?xml version='1.0'?><Error>", "an XML document"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        ("a.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        ("a.parquet", b"", "an empty file"),
        ("a.csv", b"", "an empty file"),
        ("a.txt.gz", b"", "an empty file"),
        ("a.txt", b"", "an empty file"),
        ("a.arrow", b"not arrow", "no file of the format arrow"),
        ("a.txt.gz", b"plain text", "not gzip data"),
        ("a.json.xz", gzip.compress(b"{}", mtime=0), "gzip data"),
    ],
)
def test_contents_that_contradict_the_name(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DrivetrainError, match=problem) as error:
        listed(tmp_path / name)
    assert name in str(error.value)


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(COMPRESSORS)), st.lists(st.binary(max_size=300), min_size=1, max_size=3), st.data())
def test_compressed_files_are_read_whole_or_not_at_all(
    tmp_path_factory: pytest.TempPathFactory, ending: str, parts: list[bytes], data: st.DataObject
) -> None:
    """Several compressed parts are one file; a file that is cut off is an error, and never a shorter file."""
    file = tmp_path_factory.mktemp("compressed") / f"a.txt{ending}"
    content = b"".join(COMPRESSORS[ending](part) for part in parts)
    file.write_bytes(content)
    with open_file(str(file), LOCAL) as opened:
        assert opened.read() == b"".join(parts)
    last = len(COMPRESSORS[ending](parts[-1]))
    file.write_bytes(content[: -data.draw(st.integers(1, last - 1), "bytes cut off")])
    with pytest.raises(PrepareError, match="cut off"), open_file(str(file), LOCAL) as opened:
        opened.read()


# Names


@pytest.mark.parametrize("name", ODD)
def test_what_exists_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Files, folders, relative paths, quoted URLs and patterns below folders of odd names."""
    monkeypatch.chdir(tmp_path)
    folder = tree(tmp_path / name, f"{name}.txt", "b.txt")
    for source in (str(folder), name, f"./{name}/", folder.as_uri(), f"{folder}/*.txt"):
        checked = check_source(source, "data.source", tmp_path, "auto", LOCAL)
        found = list_source(checked, "auto", LOCAL, tmp_path, "data.source")
        assert sorted(names(found, folder)) == sorted([f"{name}.txt", "b.txt"]), source
        for file in found.files:
            with open_file(file.url, LOCAL) as opened:
                assert opened.read() == CONTENT[".txt"]
    assert fetch(str(folder / f"{name}.txt"), "model.files.x", LOCAL, tmp_path) == folder / f"{name}.txt"
    assert listed(folder / f"{name}.txt").files[0].url == str(folder / f"{name}.txt")


@pytest.mark.parametrize("name", ODD)
def test_folders_of_odd_names_hold_files(tmp_path: Path, name: str) -> None:
    for location in (str(tmp_path / name / "a"), (tmp_path / name / "b").as_uri(), f"memory://odd/{name}/c"):
        folder = StorageFolder(location)
        folder.write("x/y", b"content")
        folder.rename("x/y", "x/z")
        assert folder.files() == {"x/z": 7}
        assert folder.read("x/z") == b"content"
        assert folder.size("x/y") is None
        if folder.local:
            assert (folder.local / "x" / "z").read_bytes() == b"content"
        folder.remove("x")
        assert folder.files() == {}


def test_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert absolute_path("~/data", tmp_path) == "/home/me/data"
    (tmp_path / "~").mkdir()
    assert absolute_path("~/data", tmp_path) == "/home/me/data"
    tree(tmp_path, "~/data")
    assert absolute_path("~/data", tmp_path) == str(tmp_path / "~" / "data")
    assert absolute_path("~no-user/x", tmp_path) == str(tmp_path / "~no-user/x")
    assert local_path("file:///a%20b") == Path("/a b")
    tree(tmp_path, "a%20b")
    assert local_path(f"file://{tmp_path}/a%20b") == tmp_path / "a%20b"
    tree(tmp_path, "blobs/0123", "real/inside/x.txt")
    (tmp_path / "a.jsonl").symlink_to("blobs/0123")
    assert absolute_path("x/../a.jsonl", tmp_path) == str(tmp_path / "a.jsonl")  # the name shows the format
    (tmp_path / "link").symlink_to("real/inside")
    assert absolute_path("link/../inside", tmp_path) == str(tmp_path / "real" / "inside")  # not tmp_path/inside
    with pytest.raises(ValueError, match="Chains"):
        open_storage("zip://a.csv::http://127.0.0.1/a.zip", LOCAL)


def test_things_that_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "a.txt", "two/v1/a.txt", "cycle/a.txt")
    (tmp_path / "broken.txt").symlink_to("gone.txt")
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as opened:
        monkeypatch.chdir(tmp_path)  # the path of a socket has at most 107 bytes
        opened.bind("socket.txt")
    (tmp_path / "two" / "latest").symlink_to("v1")
    (tmp_path / "cycle" / "up").symlink_to("..")
    for name, problem in {
        "broken.txt": "a symbolic link to gone.txt, which leads to no file",
        "loop.txt": "a symbolic link to loop.txt",
        "pipe.txt": "a named pipe",
        "socket.txt": "a socket",
        "two": "are the same folder",
        "cycle": "are the same folder",
        "gone*.txt": "The glob matches no file",
        "tw*": "The glob matches folders .*two.*add /",
        "a.txt/b": "Nothing was found there",
        "nul\0": "Nothing was found there",
        "x" * 300: "Nothing was found there",
    }.items():
        with pytest.raises(InputError, match=problem):
            listed(tmp_path / name)
    with pytest.raises(PrepareError, match=r"broken\.txt is a symbolic link"):
        listed(tmp_path / "*.txt")
    os.symlink(tmp_path / "a.txt", tmp_path / "b.txt")
    assert len(listed(tmp_path / "[ab].txt").files) == 2


def test_a_name_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.txt")).write_bytes(b"x")
    with pytest.raises(PrepareError, match="not valid UTF-8"):
        listed(tmp_path)


def test_remote_sources(tmp_path: Path) -> None:
    """Object storage has the same rules; a name may contain every character."""
    memory = MemoryFileSystem()
    for name in ("a [1]/x?.txt", "a [1]/.hidden/b.txt", "a [1]/c.pdf", "a [1]/d::e.txt"):
        memory.pipe_file(f"/bucket/{name}", b"text")
    for source in ("memory://bucket/a [1]", "memory://bucket/a*/**"):
        found = listed(source)
        assert sorted(file.url.rsplit("/", 1)[1] for file in found.files) == ["d::e.txt", "x?.txt"]
        assert found.ignored.kinds == {"hidden": 1, ".pdf": 1}
        for file in found.files:
            with open_file(file.url, LOCAL) as opened:
                assert opened.read() == b"text"
    assert fetch("memory://bucket/a [1]", "data.files.x", LOCAL, tmp_path).is_dir()
    memory.pipe_file("/bucket/b/train.csv", b"x\n1\n")
    memory.pipe_file("/bucket/b/test.csv", b"x\n1\n")
    for source in ("memory://bucket/b", "memory://bucket/b/", "memory://bucket/b/*", "memory://bucket/*/t*.csv"):
        assert [file.url for file in listed(source).files] == ["memory:///bucket/b/train.csv"]
    with pytest.raises(InputError, match="matches no file"):
        listed("memory://bucket/none/*")
    with pytest.raises(InputError, match="Nothing was found"):
        listed("memory://bucket/none")


# Any tree

FOLDERS = [
    "a",
    "cat",
    "b c",
    "x%20y",
    "[z]",
    "ünï",
    ".git",
    "__MACOSX",
    ".ipynb_checkpoints",
    "train",
    "test",
    "val2017",
]
STEMS = ["1", "data", "a::b", "new\nline", "what?", "README", "_x", ".h", "test", "train-0", "my test", "x.dev"]
ENDINGS = [".txt", ".jsonl", ".csv", ".parquet", ".png", ".xyz", ".pdf", ".txt.gz", ".tar.zst", ".png.gz", ""]
KINDS = {".txt": "text", ".txt.gz": "text", ".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet", ".png": "images"}
KINDS |= {".tar.zst": "webdataset", ".png.gz": "unreadable"}
SPLITS = {"train": "train", "train-0": "train", "test": "test", "val2017": "validation", "x.dev": "validation"}


def trees(endings: list[str], tops: list[str]) -> st.SearchStrategy[dict[str, str]]:
    """Return trees with files of a few kinds below a few folders: of many, nearly all would be refused."""
    below = st.lists(st.sampled_from(FOLDERS), max_size=2)
    folders = st.builds(lambda top, rest: [*filter(None, [top]), *rest], st.sampled_from(tops), below)
    names = st.tuples(folders, st.sampled_from(STEMS), st.sampled_from(endings))
    files = names.map(lambda each: ("/".join([*each[0], each[1] + each[2]]), each[2]))
    return st.lists(files, min_size=1, max_size=6).map(dict)


def expected(files: dict[str, str]) -> dict[str, list[str]] | None:
    """Return the files by split ("" without splits), by a model of the rules; None where they must be refused."""
    visible = {name: end for name, end in files.items() if not re.search(r"(^|/)[._]", name)}
    kinds = {KINDS[end] for name, end in visible.items() if end in KINDS and not Path(name).name.startswith("README")}
    if len(kinds) != 1 or kinds == {"unreadable"}:
        return None
    (kind,) = kinds
    data = [
        name for name, end in visible.items() if KINDS.get(end) == kind and not Path(name).name.startswith("README")
    ]
    folder_splits = {name: next((SPLITS[f] for f in name.split("/")[:-1] if f in SPLITS), "") for name in data}
    stems = {name: Path(name).name.removesuffix(files[name]) for name in data}
    strong = {name: SPLITS.get(stem, "test" if stem == "my test" else "") for name, stem in stems.items()}
    # without a training split, a word inside a title is none: the stem ends at the first dot
    weak = {name: "" if stems[name] == "x.dev" else split for name, split in strong.items()}
    if any(folder_splits.values()):
        splits = folder_splits
    else:
        splits = strong if "train" in strong.values() else weak
        if kind == "images" and (len(set(splits.values()) - {""}) < 2 or "" in splits.values()):
            splits = dict.fromkeys(data, "")
    found = {split: sorted(name for name in data if splits[name] == split) for split in set(splits.values())}
    if ("" in found and len(found) > 1) or ("" not in found and "train" not in found):
        return None
    return found


@settings(max_examples=400, deadline=None)
@given(
    st.tuples(
        st.lists(st.sampled_from(ENDINGS), min_size=1, max_size=2),
        st.sampled_from([[""], ["train", "test"], ["train", "val2017", "test"], ["a", "train"]]),
    ).flatmap(lambda each: trees(*each))
)
def test_every_file_is_used_or_counted(tmp_path_factory: pytest.TempPathFactory, files: dict[str, str]) -> None:
    """Of any tree, exactly the right files are used or it is refused; nothing hidden, no test data in training."""
    folders = {str(parent) for name in files for parent in Path(name).parents}
    files = {name: ending for name, ending in files.items() if name not in folders}
    root = tree(tmp_path_factory.mktemp("tree"), *files)
    wanted = expected(files)
    try:
        found = list_source(str(root), "auto", LOCAL, root, "data.source", label_column=None)
    except DrivetrainError:
        found = None
    assert (found is None) == (wanted is None), wanted
    if found is None or wanted is None:
        return
    used = {split: sorted(names(found, root, split)) for split in found.splits} or {"": sorted(names(found, root))}
    assert used == wanted
    assert sorted(names(found, root)) == wanted.get("train", wanted.get(""))
    assert sum(map(len, used.values())) + found.ignored.count == len(files)
