"""Records of a job: what it names is read and converted; what its own functions do wrong is named."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from drivetrain_pipelines.errors import InputError, PrepareError, UserCodeError
from drivetrain_pipelines.prepare.record_reader import RecordReader, needed_by
from drivetrain_pipelines.raw.chunks import Chunk
from drivetrain_pipelines.raw.fields import GROUP, LABEL, SAMPLE, TEXT, column
from drivetrain_pipelines.raw.records import Records
from drivetrain_pipelines.spec import AudioSpec, DataSpec, ImageSpec
from PIL import Image
from pyarrow import parquet

IMAGE = ImageSpec(height=2, width=3)
_COUNT = iter(range(10_000))


def reader_of(folder: Path, code: str = "", predicting: bool = False, **spec: Any) -> RecordReader:
    """Return a reader for a job whose functions are in a separate module."""
    module = f"user_code_{next(_COUNT)}"
    (folder / f"{module}.py").write_text(code)
    functions = {key: f"{module}:{value}" for key, value in spec.items() if key in ("reader", "transform")}
    return RecordReader(DataSpec(source="x", **{**spec, **functions}), folder, predicting)


def read(folder: Path, rows: list[Any], code: str = "", **spec: Any) -> Records:
    path = folder / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return reader_of(folder, code, **spec).read(Chunk("jsonl", (str(path),)))


def png(shade: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (3, 2), (shade, 0, 0)).save(sink, "PNG")
    return sink.getvalue()


def test_only_the_fields_of_the_job(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "label": 1, "x": 0.5, "who": "me", "z": {}},
        {"text": "b", "label": "k", "x": 2, "who": 1, "z": []},
    ]
    expected: dict[str, list[str]] = {TEXT: ["a", "b"], LABEL: ["1", "k"], GROUP: ["me", "1"]}
    assert read(tmp_path, rows, packing="pad", split_by="who").table.to_pydict() == expected
    assert read(tmp_path, rows).table.to_pydict() == {TEXT: ["a", "b"]}
    assert read(tmp_path, rows, columns=["x"]).table.to_pydict() == {column("x"): [0.5, 2]}


def test_a_label_column_that_the_job_names_must_exist(tmp_path: Path) -> None:
    assert read(tmp_path, [{"text": "a"}], packing="pad").table.column_names == [TEXT]
    with pytest.raises(PrepareError, match="column 'class': it is missing; the record has text"):
        read(tmp_path, [{"text": "a"}], packing="pad", label_column="class")
    parquet.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    chunk = Chunk("parquet", (str(tmp_path / "a.parquet"),))
    with pytest.raises(PrepareError, match=r"a\.parquet has no column 'class'; it has 'text'"):
        reader_of(tmp_path, packing="pad", label_column="class").read(chunk)


def test_a_chat_needs_a_transform(tmp_path: Path) -> None:
    messages = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]]
    parquet.write_table(pa.table({"messages": messages}), tmp_path / "a.parquet")
    chunk = Chunk("parquet", (str(tmp_path / "a.parquet"),))
    with pytest.raises(PrepareError, match=r"column 'messages' has the type list<.*allowed: text.*data\.transform"):
        reader_of(tmp_path, text_column="messages").read(chunk)
    code = "def chat(messages):\n    return '|'.join(m['content'] for m in messages)\n"
    records = reader_of(tmp_path, code, text_column="messages", transform="chat").read(chunk)
    assert records.table.to_pydict() == {TEXT: ["Hi|Hello"]}


@pytest.mark.parametrize("result", ["None", "5", "b'a'", "['a']", "float('nan')"])
def test_a_transform_of_text_returns_text(tmp_path: Path, result: str) -> None:
    code = f"def change(text):\n    return {result}\n"
    rows = [{"text": "a"}]
    sentence = r"line 1: data\.transform user_code_\d+:change returned .*, not a text"
    with pytest.raises(PrepareError, match=sentence):
        read(tmp_path, rows, code, transform="change")
    assert len(read(tmp_path, rows, code, transform="change", on_error="skip").skipped) == 1
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(PrepareError, match=r"a\.txt: data\.transform .* returned"):
        reader_of(tmp_path, code, transform="change").read(Chunk("text", (str(tmp_path / "a.txt"),)))
    with pytest.raises(PrepareError, match=r"the text: data\.transform .* returned"):
        reader_of(tmp_path, code, transform="change").read_text("a")


def test_running_text_is_transformed_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ab" * 200_000)
    reader = reader_of(tmp_path, "def change(text):\n    return str(len(text))\n", transform="change")
    bounds = [(0, 131072), (131072, 262144), (262144, 400_000)]
    tables = [reader.read(Chunk("text", (str(tmp_path / "a.txt"),), *bound)).table for bound in bounds]
    assert [table.num_rows for table in tables] == [1, 0, 0]
    assert tables[0][TEXT].to_pylist() == ["400000"]


RECORDS = """
def change(record):
    if record["x"] == 1:
        return None
    if record["x"] == 2:
        return [{"x": 20}, {"x": 21}, None]
    return {"x": record["x"], "other": object()}
"""


def test_a_transform_of_records(tmp_path: Path) -> None:
    rows = [{"x": 0, "unused": [1]}, {"x": 1}, {"x": 2}]
    assert read(tmp_path, rows, RECORDS, columns=["x"], transform="change").table.to_pydict() == {
        column("x"): [0, 20, 21]
    }
    bad = "def change(record):\n    return [{'x': 1}, {'y': 2}, 7]\n"
    records = read(tmp_path, [{"x": 0}], bad, columns=["x"], transform="change", on_error="skip")
    assert records.table.to_pydict() == {column("x"): [1]}
    assert [text.split(": ", 1)[1] for text in records.skipped] == [
        "column 'x': it is missing; the record has y",
        f"data.transform user_code_{next(_COUNT) - 1}:change returned 7 (int); "
        "allowed: a dictionary, a list of dictionaries or None",
    ]


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_an_error_in_the_code_of_the_job_names_function_line_and_record(tmp_path: Path, on_error: Any) -> None:
    """It is not a bad record: the code is wrong."""
    code = "def change(record):\n    return deeper(record)\n\ndef deeper(record):\n    return int('x')\n"
    with pytest.raises(UserCodeError) as caught:
        read(tmp_path, [{"x": 0}], code, columns=["x"], transform="change", on_error=on_error)
    module = f"user_code_{next(_COUNT) - 1}"
    assert caught.value.key == "data.transform"
    assert caught.value.problem == (
        f"ValueError: invalid literal for int() with base 10: 'x' for {tmp_path}/a.jsonl, line 1"
    )
    assert caught.value.where == f"{module}.py:5, in deeper"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("return 5", ": got .*:read, which returned int for .*; allowed: a function that yields dictionaries"),
        ("return None", ": got .*:read, which returned NoneType for"),
        ("return {'x': 1}", ": got .*:read, which returned dict for"),
        ("return 'text'", ": got .*:read, which returned str for"),
        ("return [1]", r": got .*:read, which yielded 1 \(int\) as record 1 of"),
        ("yield {'x': 1}; raise KeyError('y')", r" raised KeyError: 'y' for .*a.odd, record 2 \(user_code_\d+.py:2"),
        ("raise RuntimeError", r" raised RuntimeError for .*a.odd \(user_code_\d+.py:2"),
    ],
)
def test_a_reader_that_is_wrong(tmp_path: Path, body: str, sentence: str) -> None:
    (tmp_path / "a.odd").write_text("")
    reader = reader_of(tmp_path, f"def read(path):\n    {body}\n", reader="read", columns=["x"])
    with pytest.raises((UserCodeError, InputError), match=rf"data\.reader{sentence}"):
        reader.read(Chunk("any", (str(tmp_path / "a.odd"),)))


def test_values_of_a_reader(tmp_path: Path) -> None:
    (tmp_path / "a.odd").write_text("")
    code = """
import numpy as np, torch
def read(path):
    for n in range(2):
        yield {"image": np.full((2, 3, 3), n, np.uint8), "mask": np.eye(2) > n, "t": torch.tensor([n, 0.5]), "label": n}
"""
    reader = reader_of(tmp_path, code, reader="read", image=IMAGE, columns=["mask", "t"])
    table = reader.read(Chunk("any", (str(tmp_path / "a.odd"),))).table
    assert [table[name].combine_chunks().to_numpy_ndarray().shape for name in (SAMPLE, column("mask"))] == [
        (2, 2, 3, 3),
        (2, 2, 2),
    ]
    assert table[column("mask")].type.value_type == pa.uint8()
    assert table[column("t")].to_pylist() == [[0, 0.5], [1, 0.5]]
    assert table[column("t")].type.value_type == pa.float32()
    assert table[LABEL].to_pylist() == ["0", "1"]


def test_a_picture_is_in_one_column(tmp_path: Path) -> None:
    pictures = [{"bytes": png(7), "path": None}, {"bytes": None, "path": None}]
    parquet.write_table(pa.table({"image": pictures, "label": [1, 0]}), tmp_path / "a.parquet")
    chunk = Chunk("parquet", (str(tmp_path / "a.parquet"),))
    records = reader_of(tmp_path, image=IMAGE, on_error="skip").read(chunk)
    assert records.table[SAMPLE].combine_chunks().to_numpy_ndarray()[:, 0, 0].tolist() == [[7, 0, 0]]
    assert records.skipped[0].endswith("a.parquet, row 2: column 'image': it is empty (null)")
    both = pa.table({"image": pictures, "bytes": [png(8), png(9)]})
    parquet.write_table(both, tmp_path / "a.parquet")
    records = reader_of(tmp_path, image=IMAGE, on_error="skip").read(chunk)
    assert all("it has both 'bytes' and 'image'" in text for text in records.skipped)
    parquet.write_table(pa.table({"label": [1]}), tmp_path / "a.parquet")
    with pytest.raises(PrepareError, match="has no column 'bytes' or 'image'; it has 'label'"):
        reader_of(tmp_path, image=IMAGE).read(chunk)


def test_pictures_of_an_archive(tmp_path: Path) -> None:
    members = {"1.png": png(1), "1.cls": b"4", "1.wav": b"x", "2.png": png(2), "2.seg.png": png(3), "2.cls": b"5"}
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    chunk = Chunk("webdataset", (str(tmp_path / "a.tar"),))
    records = reader_of(tmp_path, image=IMAGE, on_error="skip").read(chunk)
    assert records.table[LABEL].to_pylist() == ["4"]
    assert records.skipped[0].endswith("a.tar/2: field 'bytes': it has png and seg.png; choose one in data.transform")
    code = "def one(record):\n    return {'bytes': record['png'], 'label': record['label']}\n"
    records = reader_of(tmp_path, code, image=IMAGE, transform="one").read(chunk)
    assert records.table[SAMPLE].combine_chunks().to_numpy_ndarray()[:, 0, 0, 0].tolist() == [1, 2]


def test_files_that_cannot_be_decoded(tmp_path: Path) -> None:
    for name, content in (("a.png", png(1)), ("b.png", png(1)[:50]), ("c.png", b"")):
        (tmp_path / name).write_bytes(content)
    urls = tuple(str(tmp_path / name) for name in ("a.png", "b.png", "c.png", "d.png"))
    chunk = Chunk("images", urls, labels=("x", "x", "x", "x"))
    records = reader_of(tmp_path, image=IMAGE, on_error="skip").read(chunk)
    assert records.table.num_rows == 1
    assert [text.removeprefix(f"{tmp_path}/").split(":")[0] for text in records.skipped] == ["b.png", "c.png", "d.png"]
    assert records.skipped[2].endswith("d.png: it cannot be read: No such file or directory")
    with pytest.raises(PrepareError, match=r"b\.png: it is a damaged or unusual image: .*data\.on_error"):
        reader_of(tmp_path, image=IMAGE).read(chunk)
    stored = reader_of(tmp_path, image=IMAGE.model_copy(update={"decode": False}), on_error="skip").read(chunk)
    assert stored.table[SAMPLE].to_pylist() == [png(1)]


def test_an_input_for_a_prediction_needs_no_label(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x\n1\n3\n")
    reader = reader_of(tmp_path, columns=["x", "y"], label_column="y", predicting=True)
    table = reader.read(Chunk("csv", (str(tmp_path / "a.csv"),))).table
    assert table.to_pydict() == {column("x"): [1, 3], column("y"): [0, 0]}


def test_running_text_has_no_records(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(PrepareError, match="is running text, which has no records"):
        reader_of(tmp_path, columns=["x"]).read(Chunk("text", (str(tmp_path / "a.txt"),)))


def test_no_good_record_is_no_field(tmp_path: Path) -> None:
    records = read(tmp_path, [{"x": "?"}], columns=["x"], on_error="skip")
    assert (records.table.num_columns, len(records.skipped)) == (0, 1)
    parquet.write_table(pa.table({"x": pa.array([], pa.string())}), tmp_path / "a.parquet")
    assert (
        reader_of(tmp_path, columns=["x"]).read(Chunk("parquet", (str(tmp_path / "a.parquet"),))).table.num_columns == 0
    )


def test_what_a_job_needs() -> None:
    assert needed_by(DataSpec(source="x", audio=AudioSpec(seconds=1), split_by="who")).names == (
        *("who", "label", "bytes", "audio"),
    )
    assert needed_by(DataSpec(source="x", columns=["a", "a"])).names == ("a",)


def test_numbers_have_the_type_of_the_file(tmp_path: Path) -> None:
    table = pa.table({"x": pa.array([1, None, 3], pa.int16()), "y": [[1.5, 2], [3, 4], [5, None]]})
    parquet.write_table(table, tmp_path / "a.parquet")
    records = reader_of(tmp_path, columns=["x", "y"], on_error="skip").read(
        Chunk("parquet", (str(tmp_path / "a.parquet"),))
    )
    assert records.table.schema.field(column("x")).type == pa.int16()
    assert records.table.to_pydict() == {column("x"): [1], column("y"): [[1.5, 2]]}
    assert np.dtype(np.float64).name in str(records.table.schema.field(column("y")).type).replace("double", "float64")
    assert [text.split(", ")[1] for text in records.skipped] == [
        "row 2: column 'x': it is empty (null)",
        "row 3: column 'y': an element of it is empty (null)",
    ]
