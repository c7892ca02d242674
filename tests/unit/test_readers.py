"""Readers of raw files: what other programs write is read back equal, or refused with a sentence."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import operator
import tarfile
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from drivetrain_pipelines.errors import PrepareError
from drivetrain_pipelines.prepare.record_reader import RecordReader
from drivetrain_pipelines.raw.chunks import Chunk, chunk_files, chunk_labelled_files
from drivetrain_pipelines.raw.fields import AFTER, BEFORE, GROUP, LABEL, TEXT, column
from drivetrain_pipelines.raw.readers.every import read_raw
from drivetrain_pipelines.raw.sources import SourceFile
from drivetrain_pipelines.spec import DataSpec, StorageSpec
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import feather, parquet

LOCAL = StorageSpec()
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
LINE_FEEDS = operator.methodcaller("replace", "\r", "\n")  # the csv module of Python does not quote carriage returns
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=5,
)
OBJECTS = st.lists(st.dictionaries(TEXTS, JSON, max_size=4), max_size=8)


def chunks_of(path: Path, format_: str, chunk_bytes: int = 1 << 20) -> list[Chunk]:
    return chunk_files([SourceFile(str(path), path.stat().st_size, "")], format_, chunk_bytes, LOCAL)


def rows_of(path: Path, format_: str, chunk_bytes: int = 1 << 20) -> list[Any]:
    """Read whole records in chunks; the reason in place of a bad one."""
    return [
        row for chunk in chunks_of(path, format_, chunk_bytes) for _, row in read_raw(chunk, LOCAL, None).dictionaries()
    ]


def fields_of(path: Path, format_: str, chunk_bytes: int = 1 << 20, **spec: Any) -> tuple[list[dict], list[str]]:
    """Read what a job needs. Returns the rows and the sentences about bad records."""
    reader = RecordReader(DataSpec(source=str(path), **{"on_error": "skip", **spec}), path.parent)
    read = [reader.read(chunk) for chunk in chunks_of(path, format_, chunk_bytes)]
    return [row for records in read for row in records.table.to_pylist()], [t for r in read for t in r.skipped]


def same(value: Any) -> str:
    return json.dumps(value, sort_keys=True)  # so that NaN equals NaN, and 1 is not 1.0


@given(rows=OBJECTS, chunk_bytes=st.integers(1, 200), end=st.sampled_from(["\n", "\r\n"]), last=st.booleans())
def test_json_lines(tmp_path_factory: Any, rows: list[Any], chunk_bytes: int, end: str, last: bool) -> None:
    """Every line is in exactly one chunk, whatever its size; only a line feed ends a line."""
    path = tmp_path_factory.mktemp("json") / "a.jsonl"
    text = "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)
    path.write_bytes((text if last else text.removesuffix(end)).encode())
    assert list(map(same, rows_of(path, "jsonl", chunk_bytes))) == list(map(same, rows))


@given(rows=OBJECTS, form=st.sampled_from(["array", "object", "lines"]))
def test_json_files(tmp_path_factory: Any, rows: list[Any], form: str) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    forms = {
        "array": json.dumps(rows, indent=1),
        "object": json.dumps({"version": 1, "data": rows}),
        "lines": "\n".join(map(json.dumps, rows)),
    }
    path.write_text(forms[form])
    if len(rows) > 1 or form == "array":
        assert list(map(same, rows_of(path, "json"))) == list(map(same, rows))


@given(
    rows=st.lists(st.lists(TEXTS.map(LINE_FEEDS), min_size=3, max_size=3), max_size=8),
    end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    kind=st.sampled_from(["csv", "tsv"]),
)
def test_tables_of_text(tmp_path_factory: Any, rows: list[list[str]], end: str, quoting: Any, kind: str) -> None:
    path = tmp_path_factory.mktemp("csv") / f"a.{kind}"
    with path.open("w", newline="", encoding="utf-8") as file:
        delimiter = "\t" if kind == "tsv" else ","
        writer = csv.writer(file, lineterminator=end, quoting=quoting, delimiter=delimiter)
        writer.writerow(["a", "b", "c"])
        writer.writerows(rows)
    with path.open(newline="", encoding="utf-8") as file:
        expected = list(csv.DictReader(file, delimiter=delimiter))
    assert rows_of(path, "csv") == expected
    assert [list(row.values()) for row in rows_of(path, "csv")] == rows


COLUMNS = st.fixed_dictionaries(
    {
        "text": st.lists(TEXTS.map(LINE_FEEDS), min_size=6, max_size=6),
        "label": st.lists(st.integers(0, 9), min_size=6, max_size=6),
        "x": st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=6, max_size=6),
        "flag": st.lists(st.booleans(), min_size=6, max_size=6),
    }
)


@given(columns=COLUMNS, rows=st.integers(0, 6), group=st.integers(1, 6), chunk_bytes=st.integers(1, 2000))
@pytest.mark.parametrize("kind", ["parquet", "feather", "arrow", "stream", "pandas", "csv"])
def test_tables_with_types(
    tmp_path_factory: Any, kind: str, columns: dict[str, list[Any]], rows: int, group: int, chunk_bytes: int
) -> None:
    """What pandas and pyarrow write is what a job reads, in chunks of any size."""
    frame = pd.DataFrame({name: values[:rows] for name, values in columns.items()})
    table = pa.Table.from_pandas(frame)
    path = tmp_path_factory.mktemp("table") / f"data.{kind}"
    format_ = {"parquet": "parquet", "pandas": "parquet", "csv": "csv"}.get(kind, "arrow")
    if kind == "parquet":
        parquet.write_table(table, path, row_group_size=group)
    elif kind == "pandas":
        frame.to_parquet(path)
    elif kind == "feather":
        feather.write_feather(table, path, chunksize=group)
    elif kind == "csv":
        frame.to_csv(path, index=False)
    else:
        new = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
        with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=group)
    texts, skipped = fields_of(path, format_, chunk_bytes, packing="pad", split_by="x")
    assert [row[TEXT] for row in texts] == columns["text"][:rows]
    assert [row[LABEL] for row in texts] == [str(label) for label in columns["label"][:rows]]
    assert [float(row[GROUP]) for row in texts] == columns["x"][:rows]
    numbers, more = fields_of(path, format_, chunk_bytes, columns=["x", "flag"])
    assert [row[column("x")] for row in numbers] == columns["x"][:rows]
    assert [row[column("flag")] for row in numbers] == columns["flag"][:rows]
    assert skipped == more == []


def test_unused_fields_do_not_matter(tmp_path: Path) -> None:
    """Of mixed types, twice there, not UTF-8, of types that no one can read."""
    (tmp_path / "a.jsonl").write_bytes(
        b'{"text": "a", "m": {"x": 1}, "m": 2}\n{"text": "b", "m": "\xff"}\n{"text": "c"}\n'
    )
    assert fields_of(tmp_path / "a.jsonl", "jsonl") == ([{TEXT: "a"}, {TEXT: "b"}, {TEXT: "c"}], [])
    (tmp_path / "a.csv").write_bytes(b"m,text,m\n\xff,00042,1\n2,NA,\xfe\n")
    assert fields_of(tmp_path / "a.csv", "csv") == ([{TEXT: "00042"}, {TEXT: "NA"}], [])
    table = pa.table([pa.array([[1], None]), pa.array(["a", "b"]), pa.array([{"x": 1}, None])], ["m", "text", "m"])
    parquet.write_table(table, tmp_path / "a.parquet")
    assert fields_of(tmp_path / "a.parquet", "parquet") == ([{TEXT: "a"}, {TEXT: "b"}], [])


def test_bad_records_are_skipped_or_fail(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = ['{"text": "good", "label": 1}', '{"text": ', "[1]", '{"label": 2}', '{"text": 5, "label": 1}', ""]
    lines += [
        '{"text": "a", "label": null}',
        '{"text": "a", "text": "b", "label": 1}',
        '{"text": "\\ud800", "label": 0}',
    ]
    path.write_text("\n".join(lines))
    sentences = [
        "a.jsonl, line 2: it is not JSON: Expecting value at character 10",
        "a.jsonl, line 3: it is not an object",
        "a.jsonl, line 4: column 'text': it is missing; the record has label",
        "a.jsonl, line 5: column 'text': 5 is not text (int)",
        "a.jsonl, line 7: column 'label': it is empty (null)",
        "a.jsonl, line 8: field 'text': the record has it twice",
        "a.jsonl, line 9: column 'text': it has half a character (U+D800)",
    ]
    for chunk_bytes in (1, 20, 50, 1 << 20):
        rows, skipped = fields_of(path, "jsonl", chunk_bytes, packing="pad")
        assert rows == [{TEXT: "good", LABEL: "1"}]
        assert [text.removeprefix(f"{tmp_path}/") for text in skipped] == sentences
    with pytest.raises(PrepareError, match=r"a\.jsonl, line 2: it is not JSON.*data\.on_error"):
        fields_of(path, "jsonl", on_error="fail")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is empty"),
        ("\n", "is empty"),
        ("body,label\na,1\n", "has no column 'text'; it has 'body', 'label'"),
        ("text,text\na,b\n", "has 2 columns named 'text'"),
        ("text;label\na;1\n", "has semicolons between its columns; allowed: commas"),
        ("text\tlabel\na\t1\n", "has tabs between its columns"),
        ('"text,label\na,1\n', "line 1: the quotation mark"),
        ("text,label\na,1\n".encode("utf-16"), "it is not UTF-8"),
        ("text,label\na\rb,1\n", "line 2 ends with a carriage return alone, unlike the lines before"),
    ],
)
def test_csv_files_that_cannot_be_read(tmp_path: Path, content: str | bytes, sentence: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(PrepareError, match=sentence):
        fields_of(path, "csv")


def test_bad_rows_of_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,label\n"a\nb",1\nc\nd,1,2\n"e" f,1\n\n\xff,1\ng,\nh,007\n"i,1\nj,2\n')
    rows, skipped = fields_of(path, "csv", packing="pad")
    assert rows == [{TEXT: "a\nb", LABEL: "1"}, {TEXT: "h", LABEL: "007"}]
    assert [text.removeprefix(f"{path}, ") for text in skipped] == [
        "line 4: 1 columns instead of 2",
        "line 5: 3 columns instead of 2",
        "line 6: a quotation mark ends a value, and more text follows; in a value, write it twice",
        "line 8: column 'text': a byte of it (0xff) is not UTF-8",
        "line 9: column 'label': it is empty",
        "line 11: the quotation mark that begins a value in this record is never closed",
    ]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("5", "holds one value"),
        ("", "it is not JSON"),
        ('{"a": [{"text": "x"}], "b": [{"text": "y"}]}', "the records of 'a' and 'b'"),
        ('{"text": "x", "turns": [{"text": "y"}]}', "the records of itself and the array 'turns'"),
        ('{"train": {"text": "x"}}', "holds an object with 'train'"),
        ('[{"text": "x"}', "it is not JSON"),
    ],
)
def test_json_files_that_cannot_be_read(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(PrepareError, match=sentence):
        fields_of(tmp_path / "a.json", "json")


def test_fields_that_are_there_twice_are_found_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"m": [[{"a": 1, "a": 2}]], "text": "x"}\n{"m": {"b": {"a": 1, "a": 2}}}\n')
    assert all(isinstance(row, str) and "twice" in row for row in rows_of(tmp_path / "a.jsonl", "jsonl"))
    assert fields_of(tmp_path / "a.jsonl", "jsonl")[0] == [{TEXT: "x"}]


def test_a_json_file_may_be_one_record(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"text": "x", "tags": [1, 2]}')
    assert fields_of(tmp_path / "a.json", "json") == ([{TEXT: "x"}], [])


@pytest.mark.parametrize(("name", "format_"), [("a.parquet", "parquet"), ("a.arrow", "arrow"), ("a.tar", "webdataset")])
def test_damaged_files(tmp_path: Path, name: str, format_: str) -> None:
    (tmp_path / name).write_bytes(b"what is this?" * 9)
    with pytest.raises(PrepareError, match=rf"{name} is not an? .*, or is damaged \(.*\)\. Restore"):
        fields_of(tmp_path / name, format_)
    (tmp_path / name).unlink()
    with pytest.raises(PrepareError, match="cannot be read: No such file"):
        RecordReader(DataSpec(source="x"), tmp_path).read(Chunk(format_, (str(tmp_path / name),)))


@pytest.mark.parametrize(("ending", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_compressed_files(tmp_path: Path, ending: str, compress: Any) -> None:
    contents = {
        "jsonl": '{"text": "a"}\n{"text": "b"}',
        "csv": "text\na\nb\n",
        "json": '[{"text": "a"}, {"text": "b"}]',
    }
    for kind, content in contents.items():
        path = tmp_path / f"a.{kind}{ending}"
        path.write_bytes(compress(content.encode()))
        assert fields_of(path, kind, 4) == ([{TEXT: "a"}, {TEXT: "b"}], [])
        path.write_bytes(compress(content.encode())[:-6])
        with pytest.raises(PrepareError, match="is cut off or is not valid"):
            fields_of(path, kind, 4)


def tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_a_webdataset_record_is_a_key(tmp_path: Path) -> None:
    """The key is the path up to the first dot of the base name, as in the library of this name."""
    members = [
        ("v1.0/1.txt", b"one"),
        ("./2.txt", b"two"),
        ("v1.0/1.CLS", b"7\n"),
        ("3.a.txt", b"no"),
        ("3.txt", b"3 "),
    ]
    members += [
        ("README", b""),
        (".hidden.txt", b""),
        ("__meta__", b"{}"),
        ("./2.json", b'{"label": "x"}'),
        ("3.cls", b"0"),
    ]
    tar(tmp_path / "a.tar", members)
    rows, skipped = fields_of(tmp_path / "a.tar", "webdataset", packing="pad")
    assert rows == [{TEXT: "one", LABEL: "7"}, {TEXT: "two", LABEL: "x"}, {TEXT: "3 ", LABEL: "0"}]
    assert skipped == []


def test_bad_webdataset_records(tmp_path: Path) -> None:
    members = [
        ("1.txt", b"a"),
        ("1.json", b'{"text": "b"}'),
        ("2.txt", b"c"),
        ("2.json", b"{"),
        ("3.json", b"["),
        ("4.txt", b"d"),
    ]
    tar(tmp_path / "a.tar", [*members, ("4.txt", b"e"), ("5.txt", b"\xff"), ("6.txt", b"f")])
    rows, skipped = fields_of(tmp_path / "a.tar", "webdataset")
    assert rows == [{TEXT: "c"}, {TEXT: "f"}]  # what json would hold is not needed in the record 2
    assert [text.removeprefix(f"{tmp_path}/a.tar/") for text in skipped] == [
        "1: field 'text': it has txt and 'text' of json; choose one in data.transform",
        "3: field 'text': its json member is not usable: it is not JSON: Expecting value at character 2",
        "4: the archive has 4.txt twice",
        "5: column 'text': a byte of it (0xff) is not UTF-8",
    ]


@given(cut=st.integers(0, 4 * 1024 + 10240))
def test_a_cut_archive_loses_no_record_silently(tmp_path_factory: Any, cut: int) -> None:
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    tar(path, [(f"{n}.txt", str(n).encode() * 300) for n in range(4)])
    content = path.read_bytes()
    path.write_bytes(content[:cut])
    try:
        rows, skipped = fields_of(path, "webdataset")
    except PrepareError as error:
        rows, skipped = [], [str(error)]
    texts = [row[TEXT] for row in rows]
    assert texts == [str(n) * 300 for n in range(len(texts))]
    assert len(texts) == 4 or skipped


@given(lines=st.lists(TEXTS, max_size=8), chunk_bytes=st.integers(1, 1 << 19), repeat=st.sampled_from([1, 40_000]))
def test_windows_of_running_text(tmp_path_factory: Any, lines: list[str], chunk_bytes: int, repeat: int) -> None:
    """Windows join to the text, and do not depend on the size of the chunks."""
    path = tmp_path_factory.mktemp("text") / "a.txt"
    text = "\n".join(lines) * repeat
    path.write_bytes(text.encode())
    rows, skipped = fields_of(path, "text", chunk_bytes)
    assert "".join(row[TEXT] for row in rows) == text.removeprefix("\ufeff")
    assert rows == fields_of(path, "text", 1 << 30)[0]
    assert all(set(row) == {BEFORE, TEXT, AFTER} for row in rows)
    assert skipped == []


def test_text_that_is_not_utf8_is_a_bad_record(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good\n\xff\n")
    assert fields_of(tmp_path / "a.txt", "text") == ([], [f"{tmp_path}/a.txt, byte 6: the byte 0xff is not UTF-8"])
    assert fields_of(tmp_path / "a.txt", "documents")[1] == [f"{tmp_path}/a.txt: byte 6 of it (0xff) is not UTF-8"]


def test_files_in_chunks(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(name)
    files = [SourceFile(str(path), 1, "") for path in sorted(tmp_path.glob("*.txt"))]
    labels = {files[0].url: "007", files[1].url: ""}
    chunks = chunk_labelled_files(files, labels, "documents", 2)
    assert [(len(chunk.urls), chunk.labels) for chunk in chunks] == [(2, ("007", "")), (1, ("",))]
    reader = RecordReader(DataSpec(source="x", packing="pad", on_error="skip", split_by="file"), tmp_path)
    records = reader.read(chunks[0])
    assert records.table.to_pylist() == [{TEXT: "a", LABEL: "007", GROUP: f"{tmp_path.name}/a.txt"}]
    assert records.skipped == [f"{files[1].url}: column 'label': it is empty"]
    named = RecordReader(DataSpec(source="x", packing="pad", on_error="skip", label_column="class"), tmp_path)
    assert named.read(chunks[0]).table.to_pylist() == [{TEXT: "a", LABEL: "007"}]
    unlabelled = chunk_labelled_files(files, {}, "documents", 2)
    assert unlabelled[0].labels == ()
