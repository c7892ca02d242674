"""The preprocessing actor: chunks of raw data to parts, and groups of their units to shards.

Each is a pure function of its arguments, the settings and the user's code. A marker file is written after the files
that it names, so that an interrupted preparation repeats only what has no marker.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path

import pyarrow as pa

from drivetrain_pipelines.errors import CorruptFileError, InputError
from drivetrain_pipelines.prepare.facts import Conversion, Group
from drivetrain_pipelines.prepare.parts import Part, Task, part_of
from drivetrain_pipelines.prepare.record_reader import RecordReader
from drivetrain_pipelines.prepare.samples import SampleMaker
from drivetrain_pipelines.prepare.tokenizer import TOKENIZER_FILE, TextEncoder, load_tokenizer, train_tokenizer
from drivetrain_pipelines.prepare.units import UnitMaker
from drivetrain_pipelines.raw.chunks import Chunk
from drivetrain_pipelines.raw.fields import TEXT
from drivetrain_pipelines.spec import DataSpec
from drivetrain_pipelines.storage.checksums import block_digests
from drivetrain_pipelines.storage.folder import StorageFolder
from drivetrain_pipelines.storage.shards import Shard, encode_shard, schema_to_text

PARTS = ".parts"
_GROUPS = "groups"  # below it: markers of the groups
_TOKENIZER_SAMPLE_BYTES = 64 << 20  # more text changes a small vocabulary little and costs minutes


@dataclass(frozen=True)
class ShardResult:
    """The result of one group.

    Attributes:
        shards: at most one per split; a group too short for one sample has none.
        schema: schema of the shards, base64; empty where there are none.
        token_counts: occurrences of every token in the training shard.
    """

    shards: dict[str, Shard]
    schema: str = ""
    token_counts: list[int] = field(default_factory=list)


class Preprocessor:
    """Ray actor on CPU nodes. It keeps the tokenizer between calls.

    Args:
        spec: the job's data section.
        folder: dataset version that is prepared.
        code_folder: directory of the user's code.
        parts: folder below `PARTS` for the parts of this division into chunks.
        limit: number of records to read of each chunk; all by default.
    """

    def __init__(
        self, spec: DataSpec, folder: StorageFolder, code_folder: Path, parts: str, limit: int | None = None
    ) -> None:
        self._spec, self._folder, self._parts = spec, folder, f"{PARTS}/{parts}"
        self._code_folder, self._limit = code_folder, limit
        self._reader = RecordReader(spec, code_folder, limit=limit)
        self._known_encoder: TextEncoder | None = None

    def ping(self) -> None:
        """Return as soon as the actor has started."""

    def make_tokenizer(self, sources: list[list[Chunk]]) -> None:
        """Train (or load) the tokenizer and store it with the dataset, unless it is there.

        Args:
            sources: training chunks of each source.
        """
        with suppress(CorruptFileError, InputError):
            load_tokenizer(self._folder.read(TOKENIZER_FILE), TOKENIZER_FILE)
            return
        settings = self._spec.tokenizer
        if settings.file:
            tokenizer = load_tokenizer(Path(settings.file).read_bytes(), settings.file)
        else:
            share = _TOKENIZER_SAMPLE_BYTES // max(1, len(sources))
            texts = (text for chunks in sources for text in first_bytes(self._texts(chunks), share))
            tokenizer = train_tokenizer(texts, settings.vocab_size, settings.special_tokens)
        self._folder.write(TOKENIZER_FILE, tokenizer.to_str(pretty=True).encode())

    def write_part(self, task: Task) -> Part:
        """Read a chunk and write the units of its records, then the marker that they are complete."""
        records = self._reader.read(task.chunk)
        encoder = self._encoder if self._spec.kind == "tokens" else None
        made = UnitMaker(self._spec, encoder).make(records.table, task.split)
        names = (f"{self._parts}/{task.number:05d}-{block:05d}.arrow" for block in count())

        def keep(units: pa.RecordBatch) -> tuple[str, int]:
            encoded, file = encode_shard(units), next(names)
            self._folder.write(file, encoded)
            return file, encoded.size

        part = part_of(made, records, self._spec, encoder, keep)
        self._folder.write_json(f"{self._parts}/{task.number:05d}.json", part.to_json())
        return part

    def write_shards(self, group: Group, conversion: Conversion) -> ShardResult:
        """Make the samples of a group and write its shards, then the marker that they are complete."""
        maker = SampleMaker(self._spec, conversion, self._encoder.padding if self._spec.packing == "fit" else 0)
        made = maker.make(group, self._blocks(group))
        shards, schema = {}, ""
        for split, batch in made.batches.items():
            encoded, file = encode_shard(batch), f"{split}-{group.number:05d}.arrow"
            self._folder.write(file, encoded)
            digests = block_digests(memoryview(encoded))
            shards[split] = Shard(file, batch.num_rows, encoded.size, digests, group.source_index)
            schema = schema_to_text(pa.ipc.open_file(encoded).schema)
        result = ShardResult(shards, schema, made.token_counts)
        self._folder.write_json(f"{PARTS}/{_GROUPS}/{group.number:05d}.json", asdict(result))
        return result

    def _blocks(self, group: Group) -> Iterator[tuple[pa.RecordBatch, int]]:
        for file, at in group.blocks:
            yield pa.ipc.open_file(self._folder.read(file)).get_batch(0), at

    def _texts(self, chunks: Iterable[Chunk]) -> Iterator[str]:
        """Yield the texts of records, whatever their labels."""
        unlabelled = self._spec.model_copy(update={"packing": "concatenate"})
        reader = RecordReader(unlabelled, self._code_folder, limit=self._limit)
        for chunk in chunks:
            table = reader.read(chunk).table
            if table.num_rows:
                yield from table[TEXT].to_pylist()

    @property
    def _encoder(self) -> TextEncoder:
        if self._known_encoder is None:
            tokenizer = load_tokenizer(self._folder.read(TOKENIZER_FILE), TOKENIZER_FILE)
            self._known_encoder = TextEncoder(tokenizer, self._spec.tokenizer)
        return self._known_encoder


def first_bytes(texts: Iterable[str], count: int) -> Iterator[str]:
    """Yield the first ``count`` bytes of texts in UTF-8, cut before a character that is not whole."""
    for text in texts:
        content = text.encode()
        if len(content) >= count:
            yield content[:count].decode(errors="ignore")
            return
        count -= len(content)
        yield text


def parts_made(folder: StorageFolder, parts: str) -> dict[int, Part]:
    """Return what an earlier attempt made of the chunks, by number, where all files exist in full length."""
    files = folder.files(f"{PARTS}/{parts}")
    made: dict[int, Part] = {}
    for name in files:
        if name.endswith(".json"):
            with suppress(CorruptFileError):
                part = Part.from_json(folder.read_json(name))
                if all(files.get(block.file) == block.bytes for block in part.blocks):
                    made[int(Path(name).stem)] = part
    return made


def shards_made(folder: StorageFolder) -> dict[int, ShardResult]:
    """Return what an earlier attempt made of the groups, by number, where all shards exist in full length."""
    made: dict[int, ShardResult] = {}
    for name in folder.files(f"{PARTS}/{_GROUPS}"):
        with suppress(CorruptFileError):
            content = folder.read_json(name)
            shards = {split: Shard(**shard) for split, shard in content.pop("shards").items()}
            if all(folder.size(shard.file) == shard.bytes for shard in shards.values()):
                made[int(Path(name).stem)] = ShardResult(shards=shards, **content)
    return made
