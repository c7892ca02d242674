"""Parts: what the first stage of a preparation makes of each chunk, and what the driver has to know about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Self

import pyarrow as pa

from drivetrain_pipelines.prepare.tokenizer import TextEncoder
from drivetrain_pipelines.prepare.units import Units, divide, layout_of, sizes_of
from drivetrain_pipelines.raw.chunks import Chunk
from drivetrain_pipelines.raw.records import Records
from drivetrain_pipelines.spec import DataSpec
from drivetrain_pipelines.storage.json_files import JsonObject
from drivetrain_pipelines.storage.shards import schema_to_text

MAX_LISTED = 10  # bad records that are listed; all are counted
_BLOCK_BYTES = 8 << 20  # of units that are read together


@dataclass(frozen=True)
class Task:
    """One chunk of the first stage.

    Attributes:
        number: number of the chunk, in the order of the sources.
        split: split of its samples, or `drivetrain_pipelines.prepare.splitting.AUTO`.
        key: key of the job file that names the source.
    """

    number: int
    split: str
    chunk: Chunk
    key: str = "data.source"

    @property
    def running(self) -> bool:
        """Whether the chunk is running text, which has no documents."""
        return self.chunk.format == "text"


@dataclass(frozen=True)
class Block:
    """A file with consecutive units of one split: tokens, pieces of documents, or rows.

    Attributes:
        units: number of units.
        size: their tokens; for rows, the bytes of their values of varying length.
        bytes: size of the file.
    """

    file: str
    split: str
    units: int
    size: int
    bytes: int


@dataclass(frozen=True)
class Part:
    """The facts of one chunk.

    Attributes:
        blocks: files with its units, in order.
        records: number of records that are used.
        schema: fields of the units and their observed types, base64; empty without units.
        ranges: smallest and largest value of each column of 64-bit integers.
        labels: distinct labels; None where the records have none.
        vocab_size: of the tokenizer; 0 without tokens.
        dropped_tokens: tokens at the end of documents longer than a sample, with ``packing: pad``.
        skipped: number of bad records that were left out; ``first_skipped`` has the first of them.
    """

    blocks: tuple[Block, ...] = ()
    records: int = 0
    schema: str = ""
    ranges: dict[str, tuple[int, int]] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    vocab_size: int = 0
    dropped_tokens: int = 0
    skipped: int = 0
    first_skipped: tuple[str, ...] = ()

    def to_json(self) -> JsonObject:
        """Return the part as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: JsonObject) -> Self:
        """Return the part from the output of `to_json`."""
        ranges = {name: (low, high) for name, (low, high) in content["ranges"].items()}
        labels = content["labels"] if content["labels"] is None else tuple(content["labels"])
        blocks = tuple(Block(**block) for block in content["blocks"])
        listed = tuple(content["first_skipped"])
        return cls(**{**content, "blocks": blocks, "ranges": ranges, "labels": labels, "first_skipped": listed})


def part_of(
    units: Units,
    records: Records,
    spec: DataSpec,
    encoder: TextEncoder | None,
    keep: Callable[[pa.RecordBatch], tuple[str, int]],
) -> Part:
    """Return the facts of the units of a chunk.

    Args:
        keep: stores a block of units; returns the name of its file and its bytes.
    """
    blocks, schema = list[Block](), ""
    for split, batch in units.batches.items():
        for some in divide(batch, min(_BLOCK_BYTES, spec.shard_bytes)):
            file, size = keep(some)
            blocks.append(Block(file, split, some.num_rows, int(sizes_of(some, layout_of(spec)).sum()), size))
            schema = schema or schema_to_text(some.schema)
    return Part(
        tuple(blocks),
        records.table.num_rows,
        schema,
        units.ranges,
        units.labels,
        encoder.vocab_size if encoder else 0,
        units.dropped_tokens,
        len(records.skipped),
        tuple(records.skipped[:MAX_LISTED]),
    )
