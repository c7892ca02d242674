"""Facts of a whole dataset, from those of all its parts: types, classes, and the division into groups of units.

A pure function. Its result does not depend on how the sources were divided into chunks.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import pyarrow as pa

from drivetrain_pipelines.errors import PrepareError
from drivetrain_pipelines.prepare.labels import Labels, settle_labels
from drivetrain_pipelines.prepare.number_types import Observed, promoted
from drivetrain_pipelines.prepare.parts import MAX_LISTED, Block, Part, Task
from drivetrain_pipelines.prepare.splitting import TRAIN
from drivetrain_pipelines.prepare.tokenizer import token_dtype
from drivetrain_pipelines.prepare.units import layout_of
from drivetrain_pipelines.raw.fields import column_name
from drivetrain_pipelines.spec import DataSpec
from drivetrain_pipelines.storage.arrow_types import is_ragged, row_of
from drivetrain_pipelines.storage.shards import schema_from_text

_NUMBER_BYTES, _SEGMENT_BYTES = 8, 2  # of a label or an offset, and of a token's segment, in a shard


@dataclass(frozen=True)
class Conversion:
    """How units become rows of shards; the same for all.

    Attributes:
        schema: fields of the units with the types of the dataset.
        labels: number of each label; None without labels.
        row_bytes: bytes of a row without its values of varying length.
        vocab_size: of the tokenizer; 0 without tokens.
    """

    schema: pa.Schema
    labels: dict[str, int] | None = None
    row_bytes: int = 0
    vocab_size: int = 0


@dataclass(frozen=True)
class Group:
    """Consecutive units that become one shard for each split.

    Attributes:
        number: part of the names of the shards.
        split: of all units, or `drivetrain_pipelines.prepare.splitting.AUTO`.
        running: the units are of running text, whose samples are divided into splits.
        start, stop: the units that begin here; in tokens, or in bytes of rows.
        blocks: files that hold them, each with the position of its first unit.
    """

    number: int
    split: str
    running: bool
    source_index: int
    start: int
    stop: int
    blocks: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Facts:
    """The facts of a dataset.

    Attributes:
        classes: names of the labels 0, 1, ...
        groups: division of all units, in order.
        sizes: tokens (for rows: bytes) of each split before packing.
        records: number of records that are used.
        dropped_tokens: tokens that are in no sample.
        skipped: number of bad records; ``first_skipped`` has the first of them, in the order of the sources.
    """

    conversion: Conversion
    classes: list[str]
    groups: list[Group]
    sizes: dict[str, int]
    records: int
    dropped_tokens: int
    skipped: int
    first_skipped: list[str]


def settle(spec: DataSpec, tasks: Sequence[Task], parts: Sequence[Part]) -> Facts:
    """Return the facts of the parts of all tasks.

    Raises:
        PrepareError: parts contradict each other, or the job.
    """
    found = settle_labels(spec, tasks, parts)
    parts = found.parts
    conversion = _conversion(spec, tasks, parts, found)
    step, width = _group_size(spec, conversion), spec.sequence_length + 1
    groups: list[Group] = []
    sizes: dict[str, int] = {}
    dropped = sum(part.dropped_tokens for part in parts)
    for (source_index, split, running), blocks in _streams(tasks, parts).items():
        files, starts = [block.file for block in blocks], _starts(blocks, conversion.row_bytes)
        size = starts[-1]
        for start in range(0, size, step):
            stop = min(start + step, size)
            own = range(bisect_right(starts, start) - 1, bisect_left(starts, stop))
            held = tuple((files[number], starts[number]) for number in own)
            groups.append(Group(len(groups), split, running, source_index, start, stop, held))
        sizes[split] = sizes.get(split, 0) + size
        if layout_of(spec) == "tokens":
            dropped += size % width
    skipped = [location for part in parts for location in part.first_skipped]
    return Facts(
        conversion,
        found.classes,
        groups,
        sizes,
        sum(part.records for part in parts),
        dropped,
        sum(part.skipped for part in parts),
        skipped[:MAX_LISTED],
    )


def _streams(tasks: Sequence[Task], parts: Sequence[Part]) -> dict[tuple[int, str, bool], list[Block]]:
    """Return the blocks of each source and split, in the order of the sources, ``train`` first."""
    streams: dict[tuple[int, str, bool], list[Block]] = {}
    for task, part in zip(tasks, parts, strict=True):
        for block in part.blocks:
            streams.setdefault((task.chunk.source_index, block.split, task.running), []).append(block)
    return dict(sorted(streams.items(), key=lambda stream: (stream[0][0], stream[0][1] != TRAIN)))


def _starts(blocks: Sequence[Block], row_bytes: int) -> list[int]:
    """Return the position of the first unit of each block, and the end of the last."""
    return [0, *accumulate(block.units * row_bytes + block.size for block in blocks)]


def _group_size(spec: DataSpec, conversion: Conversion) -> int:
    """Return the size of a group; in tokens, whole samples of them, or in bytes of rows."""
    if layout_of(spec) == "rows":
        return spec.shard_bytes
    width = spec.sequence_length + 1
    token_bytes = np.dtype(token_dtype(conversion.vocab_size)).itemsize
    sample_bytes = width * (token_bytes + (_SEGMENT_BYTES if layout_of(spec) == "pieces" else 0))
    return max(1, spec.shard_bytes // sample_bytes) * width


def _conversion(spec: DataSpec, tasks: Sequence[Task], parts: Sequence[Part], labels: Labels) -> Conversion:
    """Find the type of every field."""
    schemas = _schemas(tasks, parts)
    fields: dict[str, pa.DataType] = {}
    for name in dict.fromkeys(name for schema, _, _ in schemas for name in schema.names):
        kinds = {schema.field(name).type: url for schema, _, url in reversed(schemas) if name in schema.names}
        if number_name := column_name(name):
            observed = [
                Observed(schema.field(name).type, known.get(number_name), url) for schema, known, url in schemas
            ]
            fields[name] = promoted(number_name, observed)
        elif len(kinds) > 1:
            shown = " and ".join(f"{kind} in {url}" for kind, url in kinds.items())
            raise PrepareError(f"the samples have different types: {shown}", "Let data.transform return one type")
        else:
            fields[name] = next(iter(kinds))
    row_bytes = sum(map(_row_bytes, fields.values())) if layout_of(spec) == "rows" else 0
    vocab_size = max((part.vocab_size for part in parts), default=0)
    return Conversion(pa.schema(fields), labels.numbers, row_bytes, vocab_size)


def _schemas(tasks: Sequence[Task], parts: Sequence[Part]) -> list[tuple[pa.Schema, dict[str, tuple[int, int]], str]]:
    """Return each schema of parts, with the ranges of its columns and the first file that has it."""
    first_url: dict[str, str] = {}
    ranges: dict[str, dict[str, tuple[int, int]]] = {}
    for task, part in zip(tasks, parts, strict=True):
        if part.blocks:
            first_url.setdefault(part.schema, task.chunk.urls[0])
            known = ranges.setdefault(part.schema, {})
            for name, (low, high) in part.ranges.items():
                known[name] = (min(low, known.get(name, (low, 0))[0]), max(high, known.get(name, (0, high))[1]))
    return [(schema_from_text(text), ranges[text], url) for text, url in first_url.items()]


def _row_bytes(kind: pa.DataType) -> int:
    """Return the bytes of a value in a shard; of a value of varying length, or a label, those of a number."""
    if is_ragged(kind):
        return _NUMBER_BYTES
    dtype, shape = row_of(kind)
    return dtype.itemsize * math.prod(shape)
