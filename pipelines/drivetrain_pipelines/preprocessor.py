"""The preprocessing actor: turns chunks of raw text into shards. A pure function of chunk, settings and user code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from drivetrain_pipelines.checksums import atomic_write
from drivetrain_pipelines.order import mix_key
from drivetrain_pipelines.shards import Shard, write_shard
from drivetrain_pipelines.sources import Chunk, read_chunk
from drivetrain_pipelines.spec import DataSpec
from drivetrain_pipelines.tokenizer import encode, load_tokenizer, token_dtype, train_tokenizer
from drivetrain_pipelines.user_code import load_function

TOKENIZER_FILE = "tokenizer.json"
_TOKENIZER_SAMPLE_BYTES = 64 << 20  # more text than this changes a small vocabulary little and costs minutes


@dataclass(frozen=True)
class ChunkResult:
    """What became of one chunk.

    Attributes:
        shards: at most one per split; a chunk too short for one sample has none.
        token_counts: occurrences of every token in the training shard; int64 ``[vocab]``.
        dropped_tokens: tokens at the end of the chunk that did not fill a sample.
    """

    shards: dict[str, Shard]
    token_counts: npt.NDArray[np.int64]
    dropped_tokens: int


class Preprocessor:
    """Runs as a Ray actor on CPU nodes; holds the tokenizer between chunks.

    Args:
        spec: the job's data section.
        folder: dataset version being prepared.
        code_folder: the user's code.
    """

    def __init__(self, spec: DataSpec, folder: Path, code_folder: Path) -> None:
        self._spec, self._folder = spec, folder
        self._transform: Callable[[str], str] = (
            load_function(spec.transform, str(code_folder), "data.transform") if spec.transform else str
        )

    def ping(self) -> None:
        """Answers as soon as the actor is there."""

    def make_tokenizer(self, chunks: list[Chunk]) -> None:
        """Train (or load) the tokenizer and store it with the dataset."""
        if self._spec.tokenizer.file:
            tokenizer = load_tokenizer(Path(self._spec.tokenizer.file))
        else:
            tokenizer = train_tokenizer(self._texts(chunks), self._spec.tokenizer.vocab_size)
        with atomic_write(self._folder / TOKENIZER_FILE) as file:
            file.write(tokenizer.to_str(pretty=True).encode())

    def write_chunk(self, split: str, number: int, chunk: Chunk) -> ChunkResult:
        """Tokenize one chunk, pack it into samples of ``sequence_length + 1`` tokens and write its shards.

        The extra token lets every sample have ``sequence_length`` targets. Without an eval source, ``split`` is
        ``auto`` and each sample goes to ``train`` or ``eval`` by a hash of its place in the source.
        """
        tokenizer = load_tokenizer(self._folder / TOKENIZER_FILE)
        tokens = encode(tokenizer, self._transform(read_chunk(chunk)))
        width = self._spec.sequence_length + 1
        samples = tokens[: len(tokens) // width * width].reshape(-1, width)
        vocabulary = tokenizer.get_vocab_size()
        groups = {split: samples} if split != "auto" else self._split(samples, number)
        shards, counts = {}, np.zeros(vocabulary, np.int64)
        for name, rows in groups.items():
            if not len(rows):
                continue
            if name == "train":
                counts = np.bincount(rows.reshape(-1), minlength=vocabulary)
            values = pa.array(rows.reshape(-1).astype(token_dtype(vocabulary)))
            batch = pa.record_batch({"tokens": pa.FixedSizeListArray.from_arrays(values, width)})
            shards[name] = write_shard(self._folder, f"{name}-{number:05d}.arrow", batch)
        return ChunkResult(shards, counts, len(tokens) - samples.size)

    def _texts(self, chunks: list[Chunk]) -> Iterator[str]:
        budget = _TOKENIZER_SAMPLE_BYTES
        for chunk in chunks:
            text = self._transform(read_chunk(chunk))
            yield from text.splitlines(keepends=True)
            budget -= len(text)
            if budget <= 0:
                return

    def _split(self, samples: npt.NDArray[np.int64], number: int) -> dict[str, npt.NDArray[np.int64]]:
        threshold = int(self._spec.eval_fraction * (1 << 64))
        held_out = np.array([mix_key(number, row) < threshold for row in range(len(samples))], dtype=bool)
        return {"train": samples[~held_out], "eval": samples[held_out]}
