"""Records in any division into chunks become the same shards: the two stages of a preparation, in memory."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from drivetrain_pipelines.errors import PrepareError
from drivetrain_pipelines.prepare.facts import settle
from drivetrain_pipelines.prepare.parts import Task, part_of
from drivetrain_pipelines.prepare.splitting import AUTO, Splitter
from drivetrain_pipelines.prepare.units import UnitMaker
from drivetrain_pipelines.raw.chunks import Chunk
from drivetrain_pipelines.raw.fields import AFTER, BEFORE, CONTENT, LABEL, SAMPLE, TEXT, column
from drivetrain_pipelines.raw.records import Records
from drivetrain_pipelines.spec import ImageSpec
from drivetrain_pipelines.storage.arrow_types import array_of
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.builds import ENCODER, Build, cut, spec_of, texts_table

IMAGE = ImageSpec(height=2, width=2)
TEXTS = [f"{word} {number}" * (number % 7) for number in range(60) for word in ("one", "two three")]


def labelled(table: pa.Table) -> pa.Table:
    labels = [("cat", "dog", "owl")[number * 7 % 3] for number in range(table.num_rows)]
    return table.append_column(LABEL, pa.array(labels, pa.large_string()))


def windows(texts: list[str]) -> pa.Table:
    """Return running text: files of two windows each."""
    rows = [row for text in texts for row in (("", text, "!"), (text, "!", ""))]
    return pa.table(
        {
            name: pa.array(values, pa.large_string())
            for name, values in zip((BEFORE, TEXT, AFTER), zip(*rows, strict=True), strict=True)
        }
    )


def images(rows: int) -> dict[str, pa.Array]:
    pixels = np.random.default_rng(0).integers(0, 4, (rows, 2, 2, 3)).astype(np.uint8)
    return {SAMPLE: array_of(pixels), CONTENT: pa.array([each.tobytes() for each in pixels], pa.large_binary())}


def encoded(rows: int) -> pa.Table:
    files = pa.array([bytes(range(row % 40)) for row in range(rows)], pa.large_binary())
    return pa.table({SAMPLE: files, CONTENT: files})


def numbers(rows: int) -> pa.Table:
    draw = np.random.default_rng(1)
    return pa.table(
        {column("x"): array_of(draw.normal(size=(rows, 3))), column("y"): array_of(draw.integers(0, 9, rows))}
    )


SOURCES: dict[str, tuple[dict[str, Any], pa.Table]] = {
    "running text": ({}, windows(TEXTS)),
    "documents": ({}, texts_table(TEXTS)),
    "fit": ({"packing": "fit"}, texts_table(TEXTS)),
    "pad": ({"packing": "pad"}, labelled(texts_table(TEXTS))),
    "images": ({"image": IMAGE}, labelled(pa.table(images(90)))),
    "encoded images": (
        {"image": ImageSpec(height=2, width=2, decode=False)},
        encoded(90),
    ),
    "columns": ({"columns": ["x", "y"]}, numbers(120)),
    "image with columns": (
        {"image": IMAGE, "columns": ["x", "y"]},
        pa.table(
            {
                **images(90),
                **dict(zip(numbers(90).column_names, numbers(90).columns, strict=True)),
            }
        ),
    ),
}


@pytest.mark.parametrize("kind", SOURCES)
@settings(max_examples=30, deadline=None)
@given(at=st.lists(st.integers(0, 1000), max_size=40), seed=st.integers(0, 9))
def test_the_division_into_chunks_has_no_effect(kind: str, at: list[int], seed: int) -> None:
    changed, table = SOURCES[kind]
    spec, format_ = spec_of(**changed), "text" if kind == "running text" else "jsonl"
    whole, divided = Build(spec, [table], format_), Build(spec, cut(table, at), format_, seed=seed)
    assert divided.shards == whole.shards
    assert len(whole.shards["train"]) > 1
    assert whole.shards["eval"]
    assert divided.facts.dropped_tokens == whole.facts.dropped_tokens
    assert divided.facts.classes == whole.facts.classes
    for shard in (shard for shards in whole.shards.values() for shard in shards):
        assert pa.ipc.open_file(shard).get_batch(0).nbytes <= 1024 + 100


@pytest.mark.parametrize("packing", ["concatenate", "fit", "pad"])
@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.text("one two", max_size=60), min_size=1, max_size=80))
def test_no_token_is_lost_or_doubled(packing: str, texts: list[str]) -> None:
    spec = spec_of(packing=packing)
    made = Build(spec, cut(texts_table(texts), list(range(0, 80, 7))))
    held_out = set(Splitter(AUTO, 0.3).groups([text.encode() for text in texts])["eval"].tolist())
    dropped = 0
    for split in ("train", "eval"):
        own = [text for number, text in enumerate(texts) if (number in held_out) == (split == "eval")]
        if packing == "pad":
            tokens, cut_off = ENCODER.padded(own, 7)
            assert [row["tokens"] for row in made.rows(split)] == tokens.tolist()
            dropped += int(cut_off.sum())
            continue
        expected = [token for document in ENCODER.documents(own) for token in document.tolist()]
        rows = made.rows(split)
        if packing == "concatenate":
            assert [token for row in rows for token in row["tokens"]] == expected[: len(expected) // 8 * 8]
            dropped += len(expected) % 8
        else:
            pieces = [
                tuple(token for token, number in zip(row["tokens"], row["segments"], strict=True) if number == segment)
                for row in rows
                for segment in sorted(set(row["segments"]) - {0})
            ]
            documents = [document.tolist() for document in ENCODER.documents(own)]
            cut_documents = [tuple(each[at : at + 8]) for each in documents for at in range(0, len(each), 8)]
            assert Counter(pieces) == Counter(cut_documents)
    assert made.facts.dropped_tokens == dropped


def test_running_text_continues_over_files() -> None:
    """Only the end of the last sample is missing."""
    files = [f"poem {number} of the sea\n" for number in range(50)]
    table = pa.table({BEFORE: [""] * 50, TEXT: files, AFTER: [""] * 50})
    made = Build(spec_of(eval_source="y", sequence_length=99), cut(table, list(range(50))), "text", "train")
    expected = [token for text in files for token in ENCODER.window("", text, "").tolist()]
    assert expected.count(ENCODER.end) == 50
    assert [token for row in made.rows("train") for token in row["tokens"]] == expected[: len(expected) // 100 * 100]
    assert made.facts.dropped_tokens == len(expected) % 100


@pytest.mark.parametrize("kind", SOURCES)
def test_equal_contents_are_in_one_split(kind: str) -> None:
    changed, table = SOURCES[kind]
    doubled = pa.concat_tables([table, table.slice(3), table.slice(0, 20)])
    made = Build(spec_of(**changed), cut(doubled, [5, 30, 90]), "text" if kind == "running text" else "jsonl")
    first = "tokens" if "tokens" in made.rows("train")[0] else next(iter(changed.keys() & {"image"}), "x")
    both = [{str(row.get(first)) for row in made.rows(split)} for split in ("train", "eval")]
    if kind not in ("documents", "fit"):  # samples of several documents
        assert not both[0] & both[1]
    assert both[1]


def test_the_content_of_numbers_does_not_depend_on_their_type() -> None:
    """Whole numbers in one chunk and fractions in the next are promoted, and stay in their split."""
    rows = [[float(number % 50)] for number in range(300)]
    as_floats = pa.table({column("x"): pa.array([row[0] for row in rows])})
    as_integers = pa.table({column("x"): pa.array([int(row[0]) for row in rows], pa.int32())})
    spec = spec_of(columns=["x"])
    mixed = Build(spec, [as_integers.slice(0, 100), as_floats.slice(100)])
    assert mixed.shards == Build(spec, [as_floats]).shards
    whole = Build(spec, [as_integers])
    assert [row["x"] for row in whole.rows("eval")] == [row["x"] for row in mixed.rows("eval")]
    assert mixed.batches["train"][0].schema.field("x").type == pa.float64()
    assert whole.batches["train"][0].schema.field("x").type == pa.int32()
    assert not {row["x"] for row in mixed.rows("train")} & {row["x"] for row in mixed.rows("eval")}


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (pa.array([True, False]), pa.array([3, 4]), pa.int64()),
        (pa.array([1], pa.uint8()), pa.array([-1], pa.int8()), pa.int16()),
        (pa.array([1], pa.uint64()), pa.array([-1], pa.int64()), pa.int64()),
        (pa.array([1], pa.int16()), pa.array([0.5], pa.float32()), pa.float32()),
        (pa.array([1 << 53]), pa.array([0.5]), pa.float64()),
        (pa.array([(1 << 53) + 1]), pa.array([0.5]), "no type holds all numbers of the column 'x' exactly: int64"),
        (pa.array([1 << 63], pa.uint64()), pa.array([-1]), "no type holds all numbers .* uint64 in file-0 and int64"),
        (array_of(np.zeros((1, 2))), array_of(np.zeros((1, 3))), "different shapes: .*2. in file-0 and .*3. in file-1"),
    ],
)
def test_types_are_promoted_if_no_number_changes(
    first: pa.Array, second: pa.Array, expected: pa.DataType | str
) -> None:
    spec, tables = (
        spec_of(columns=["x"], eval_source="y"),
        [pa.table({column("x"): values}) for values in (first, second)],
    )
    if isinstance(expected, str):
        with pytest.raises(PrepareError, match=expected):
            Build(spec, tables, split="train")
        return
    for order in (tables, tables[::-1]):
        (batch,) = Build(spec, order, split="train").batches["train"]
        assert batch.column("x").type == expected
        assert sorted(batch.column("x").to_pylist()) == sorted(
            first.cast(expected).to_pylist() + second.cast(expected).to_pylist()
        )


def labels_table(labels: list[str]) -> pa.Table:
    return texts_table([f"text {n}" for n in range(len(labels))]).append_column(
        LABEL, pa.array(labels, pa.large_string())
    )


@pytest.mark.parametrize(
    ("classes", "labels", "numbers", "names"),
    [
        (None, ["dog", "cat", "dog"], [1, 0, 1], ["cat", "dog"]),
        (None, ["7", "0", "7"], [7, 0, 7], []),
        (None, ["1", "0", "2"], [1, 0, 2], ["0", "1", "2"]),
        (None, ["007", "07", "7"], [0, 1, 2], ["007", "07", "7"]),
        (None, ["1", "-1"], [1, 0], ["-1", "1"]),
        (["dog", "cat"], ["dog", "cat", "1"], [0, 1, 1], ["dog", "cat"]),
        (["1", "0"], ["1", "0"], [0, 1], ["1", "0"]),
    ],
)
def test_numbers_of_labels(classes: list[str] | None, labels: list[str], numbers: list[int], names: list[str]) -> None:
    """Labels are collected over all chunks, however many each has."""
    spec = spec_of(packing="pad", classes=classes, eval_source="y")
    for tables in ([labels_table(labels)], cut(labels_table(labels), [1, 2])):
        made = Build(spec, tables, split="train")
        assert [row["label"] for row in made.rows("train")] == numbers
        assert made.facts.classes == names


def test_labels_that_cannot_be_numbered() -> None:
    spec = spec_of(packing="pad", classes=["good", "bad"])
    with pytest.raises(
        PrepareError, match=r"'2' \(first in file-1\) is neither one of data\.classes \(good, bad\).*1 other"
    ):
        Build(spec, [labels_table(["good"]), labels_table(["2", "worse"])])
    unlabelled = [labels_table(["good"]), texts_table(["one", "two"])]
    with pytest.raises(PrepareError, match=r"file-1: records without a label, which others have.*on_error"):
        Build(spec, unlabelled)
    made = Build(spec.model_copy(update={"on_error": "skip"}), unlabelled)
    assert (made.facts.records, made.facts.skipped) == (1, 2)
    assert len(made.rows("train")) + len(made.rows("eval")) == 1


def test_bad_records_are_listed_in_the_order_of_the_source() -> None:
    spec = spec_of()
    tasks = [Task(number, AUTO, Chunk("jsonl", ("x",))) for number in range(5)]
    skipped = [[f"record {number * 4 + n}" for n in range(4)] for number in range(5)]
    parts = [
        part_of(
            UnitMaker(spec, ENCODER).make(pa.table({}), AUTO),
            Records(pa.table({}), each),
            spec,
            ENCODER,
            lambda _: ("", 0),
        )
        for each in skipped
    ]
    facts = settle(spec, tasks, parts)
    assert facts.skipped == 20
    assert facts.first_skipped == [f"record {number}" for number in range(10)]
