"""The preprocessing actor: turns chunks of raw data into shards. A pure function of chunk, settings and user code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
from tokenizers import Tokenizer

from drivetrain_pipelines.errors import CorruptFileError, PrepareError
from drivetrain_pipelines.prepare.record_reader import RecordReader
from drivetrain_pipelines.prepare.samples import Maker, maker_of
from drivetrain_pipelines.prepare.splitting import Splitter
from drivetrain_pipelines.prepare.tokenizer import TOKENIZER_FILE, load_tokenizer, train_tokenizer
from drivetrain_pipelines.raw.records import Chunk
from drivetrain_pipelines.spec import DataSpec
from drivetrain_pipelines.storage.checksums import block_digests
from drivetrain_pipelines.storage.folder import StorageFolder
from drivetrain_pipelines.storage.shards import Shard, encode_shard, schema_to_text

PARTS = ".parts"
_TOKENIZER_SAMPLE_BYTES = 64 << 20  # more text changes a small vocabulary little and costs minutes


@dataclass(frozen=True)
class ChunkResult:
    """The result of one chunk.

    Attributes:
        shards: at most one per split; a chunk too short for one sample has none.
        schema: schema of the shards, base64; empty where there are none.
        token_counts: occurrences of every token in the training shard.
        dropped_tokens: tokens at the end of the chunk that did not fill a sample.
        skipped: bad records, each with its error.
    """

    shards: dict[str, Shard]
    schema: str = ""
    token_counts: list[int] = field(default_factory=list)
    dropped_tokens: int = 0
    skipped: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, folder: StorageFolder, number: int) -> ChunkResult | None:
        """Return what an earlier attempt made of the chunk, if all its shards exist in full length."""
        try:
            content = folder.read_json(_part(number))
        except CorruptFileError:
            return None
        shards = {split: Shard(**shard) for split, shard in content.pop("shards").items()}
        whole = all(folder.size(shard.file) == shard.bytes for shard in shards.values())
        return cls(shards=shards, **content) if whole else None


class Preprocessor:
    """Ray actor on CPU nodes that writes shards. It keeps the tokenizer between chunks.

    Args:
        spec: the job's data section.
        folder: dataset version that is prepared.
        code_folder: directory of the user's code.
    """

    def __init__(self, spec: DataSpec, folder: StorageFolder, code_folder: Path) -> None:
        self._spec, self._folder = spec, folder
        self._reader = RecordReader(spec, code_folder)
        self._maker: Maker | None = None

    def ping(self) -> None:
        """Return as soon as the actor has started."""

    def make_tokenizer(self, chunks: list[Chunk]) -> None:
        """Train (or load) the tokenizer and store it with the dataset."""
        if self._spec.tokenizer.file:
            tokenizer = load_tokenizer(Path(self._spec.tokenizer.file).read_bytes(), self._spec.tokenizer.file)
        else:
            tokenizer = train_tokenizer(
                self._texts(chunks), self._spec.tokenizer.vocab_size, self._spec.tokenizer.special_tokens
            )
        self._folder.write(TOKENIZER_FILE, tokenizer.to_str(pretty=True).encode())

    def write_chunk(self, split: str, number: int, chunk: Chunk) -> ChunkResult:
        """Make the samples of one chunk and write its shards, then the marker file that they are complete.

        Args:
            split: split of the samples, or `drivetrain_pipelines.prepare.splitting.AUTO`.
            number: number of the chunk; part of the names of its shards.
        """
        records = self._reader.read(chunk)
        if self._maker is None:
            self._maker = maker_of(self._spec, self._tokenizer() if self._spec.kind == "tokens" else None)
        made = self._maker.make(records, Splitter(split, self._spec.eval_fraction, self._spec.train_fraction))
        shards, schema = {}, ""
        for name, batch in made.batches.items():
            encoded, file = encode_shard(batch), f"{name}-{number:05d}.arrow"
            self._folder.write(file, encoded)
            shards[name] = Shard(
                file, batch.num_rows, encoded.size, block_digests(memoryview(encoded)), chunk.source_index
            )
            schema = schema_to_text(pa.ipc.open_file(encoded).schema)
        result = ChunkResult(shards, schema, made.token_counts, made.dropped_tokens, records.skipped)
        self._folder.write_json(_part(number), asdict(result))
        return result

    def _texts(self, chunks: list[Chunk]) -> Iterator[str]:
        budget = _TOKENIZER_SAMPLE_BYTES
        for chunk in chunks:
            table = self._reader.read(chunk).table
            if not table.num_rows:
                continue  # no record begins in this chunk, or all are bad
            if self._spec.text_column not in table.column_names:
                have = ", ".join(table.column_names) or "none"
                raise PrepareError(f"{chunk.urls[0]} has no column {self._spec.text_column!r} (columns: {have})")
            for text in table[self._spec.text_column].to_pylist():
                yield from str(text).splitlines(keepends=True)
                budget -= len(str(text))
            if budget <= 0:
                return

    def _tokenizer(self) -> Tokenizer:
        return load_tokenizer(self._folder.read(TOKENIZER_FILE), TOKENIZER_FILE)


def _part(number: int) -> str:
    return f"{PARTS}/{number:05d}.json"
