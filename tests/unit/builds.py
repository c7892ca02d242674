"""Both stages of a preparation: in memory, from tables as records are read; and from files, without Ray."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
from drivetrain.home import Home
from drivetrain_pipelines.prepare.facts import Facts, settle
from drivetrain_pipelines.prepare.parts import Part, Task, part_of
from drivetrain_pipelines.prepare.prepare import Prepared, prepare
from drivetrain_pipelines.prepare.preprocessor import Preprocessor
from drivetrain_pipelines.prepare.samples import SampleMaker
from drivetrain_pipelines.prepare.splitting import AUTO
from drivetrain_pipelines.prepare.tokenizer import TextEncoder, train_tokenizer
from drivetrain_pipelines.prepare.units import UnitMaker
from drivetrain_pipelines.raw.chunks import Chunk
from drivetrain_pipelines.raw.fields import TEXT
from drivetrain_pipelines.raw.records import Records
from drivetrain_pipelines.spec import DataSpec
from drivetrain_pipelines.storage.shards import encode_shard
from drivetrain_pipelines.stream.columns import Columns
from drivetrain_pipelines.stream.dataset import Dataset

from tests.unit.runs import prepare_shards

ENCODER = TextEncoder(train_tokenizer(["one two three four five six seven"] * 9, 280))


def spec_of(**settings: Any) -> DataSpec:
    return DataSpec(**{"source": "x", "eval_fraction": 0.3, "sequence_length": 7, "shard_bytes": 1024, **settings})


def texts_table(texts: list[str]) -> pa.Table:
    return pa.table({TEXT: pa.array(texts, pa.large_string())})


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
        self.token_counts = np.zeros(self.facts.conversion.vocab_size, np.int64)
        for group in self.facts.groups:
            made = maker.make(group, ((self.blocks[file], at) for file, at in group.blocks))
            self.token_counts += np.array(made.token_counts, np.int64)
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
    return [table.slice(start, stop - start) for start, stop in pairwise(bounds)]


def prepared(spec: DataSpec, folder: Path) -> Prepared:
    """Prepare a dataset as actors do, without Ray."""
    home = Home(folder / "home")
    prepare_shards(spec, home, folder)
    return prepare(spec, str(home.datasets), home.downloads, folder, 1, lambda *_: None)


def rows_of(made: Prepared, split: str = "train") -> Columns:
    return Dataset(made.folder.location).read(split, np.arange(made.manifest.rows(split)))


class LocalPool:
    """Actors in this process: each call goes to any of them, in any order.

    Args:
        random: chooses the order and the actor.
    """

    def __init__(self, random: Random, size: int, *arguments: Any) -> None:
        self._random, self._actors = random, [Preprocessor(*arguments) for _ in range(size)]

    def __enter__(self) -> LocalPool:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to stop."""

    def map(
        self, method: str, calls: dict[int, tuple[Any, ...]], on_result: Callable[[int, Any], None], _: object
    ) -> None:
        for number in self._random.sample(list(calls), len(calls)):
            on_result(number, getattr(self._random.choice(self._actors), method)(*calls[number]))
