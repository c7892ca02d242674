"""Records in any division into chunks become the same shards: the two stages of a preparation, in memory."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from drivetrain_pipelines.errors import PrepareError
from drivetrain_pipelines.prepare.facts import Facts, settle
from drivetrain_pipelines.prepare.parts import Part, Task, part_of
from drivetrain_pipelines.prepare.samples import SampleMaker
from drivetrain_pipelines.prepare.splitting import AUTO, Splitter
from drivetrain_pipelines.prepare.tokenizer import TextEncoder, train_tokenizer
from drivetrain_pipelines.prepare.units import UnitMaker
from drivetrain_pipelines.raw.chunks import Chunk
from drivetrain_pipelines.raw.fields import AFTER, BEFORE, LABEL, SAMPLE, TEXT, column
from drivetrain_pipelines.raw.records import Records
from drivetrain_pipelines.spec import DataSpec, ImageSpec
from drivetrain_pipelines.storage.arrow_types import array_of
from drivetrain_pipelines.storage.shards import encode_shard
from hypothesis import given, settings
from hypothesis import strategies as st

ENCODER = TextEncoder(train_tokenizer(["one two three four five six seven"] * 9, 280))
IMAGE = ImageSpec(height=2, width=2)
TEXTS = [f"{word} {number}" * (number % 7) for number in range(60) for word in ("one", "two three")]


def spec_of(**settings: Any) -> DataSpec:
    return DataSpec(**{"source": "x", "eval_fraction": 0.3, "sequence_length": 7, "shard_bytes": 1024, **settings})


def texts_table(texts: list[str]) -> pa.Table:
    return pa.table({TEXT: pa.array(texts, pa.large_string())})


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


def pixels(rows: int) -> pa.Array:
    return array_of(np.random.default_rng(0).integers(0, 4, (rows, 2, 2, 3)).astype(np.uint8))


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
    "images": ({"image": IMAGE}, labelled(pa.table({SAMPLE: pixels(90)}))),
    "encoded images": (
        {"image": ImageSpec(height=2, width=2, decode=False)},
        pa.table({SAMPLE: pa.array([bytes(range(n % 40)) for n in range(90)], pa.large_binary())}),
    ),
    "columns": ({"columns": ["x", "y"]}, numbers(120)),
    "image with columns": (
        {"image": IMAGE, "columns": ["x", "y"]},
        pa.table(
            {
                SAMPLE: pixels(90),
                **{name: values for name, values in zip(numbers(90).column_names, numbers(90).columns, strict=True)},
            }
        ),
    ),
}


class Build:
    """The shards of tables, each a chunk; ``order`` is the order in which actors finish."""

    def __init__(
        self, spec: DataSpec, tables: list[pa.Table], format_: str = "jsonl", split: str = AUTO, seed: int = 0
    ) -> None:
        self.blocks: dict[str, pa.RecordBatch] = {}
        encoder = ENCODER if spec.kind == "tokens" else None
        tasks = [Task(number, split, Chunk(format_, (f"file-{number}",))) for number in range(len(tables))]
        parts: dict[int, Part] = {}
        for number in np.random.default_rng(seed).permutation(len(tables)).tolist():
            units = UnitMaker(spec, encoder).make(tables[number], split)
            parts[number] = part_of(units, Records(tables[number]), spec, encoder, self._keep)
        self.facts: Facts = settle(spec, tasks, [parts[number] for number in range(len(tables))])
        maker = SampleMaker(spec, self.facts.conversion, ENCODER.padding)
        self.batches: dict[str, list[pa.RecordBatch]] = {"train": [], "eval": []}
        for group in self.facts.groups:
            made = maker.make(group, ((self.blocks[file], at) for file, at in group.blocks))
            for name, batch in made.batches.items():
                self.batches[name].append(batch)

    def _keep(self, units: pa.RecordBatch) -> tuple[str, int]:
        encoded = encode_shard(units)  # as an actor stores them
        self.blocks[name := str(len(self.blocks))] = pa.ipc.open_file(encoded).get_batch(0)
        return name, encoded.size

    @property
    def shards(self) -> dict[str, list[bytes]]:
        return {name: [encode_shard(batch).to_pybytes() for batch in batches] for name, batches in self.batches.items()}

    def rows(self, split: str) -> list[dict[str, Any]]:
        return [row for batch in self.batches[split] for row in batch.to_pylist()]


def cut(table: pa.Table, at: list[int]) -> list[pa.Table]:
    bounds = [0, *sorted(position % (table.num_rows + 1) for position in at), table.num_rows]
    return [table.slice(start, stop - start) for start, stop in zip(bounds, bounds[1:], strict=False)]


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
