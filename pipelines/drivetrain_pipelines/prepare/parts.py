"""Parts: what the first stage of a preparation makes of each chunk, and what the driver has to know about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Self

from drivetrain_pipelines.raw.chunks import Chunk
from drivetrain_pipelines.storage.json_files import JsonObject

MAX_LISTED = 10  # bad records that are listed; all are counted


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

    def with_skipped(self, skipped: list[str]) -> Self:
        """Return the part with its bad records."""
        return replace(self, skipped=len(skipped), first_skipped=tuple(skipped[:MAX_LISTED]))

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
