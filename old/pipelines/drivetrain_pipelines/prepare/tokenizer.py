"""Byte-level BPE tokenizers (Hugging Face ``tokenizers``)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from drivetrain_pipelines.errors import InputError

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_FILE = "tokenizer.json"  # in the folder of the dataset version


def train_tokenizer(texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = ()) -> Tokenizer:
    """Train byte-level BPE (Sennrich et al. 2016) on ``texts``; the same texts give the same tokenizer.

    Args:
        special_tokens: texts that are never divided; their ids are 1, 2, ... in this order.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, *special_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_tokenizer(content: bytes, path: str, key: str = "data.tokenizer.file") -> Tokenizer:
    """Load a tokenizer. Raises `InputError` naming ``key`` when ``content`` (from ``path``) is not a tokenizer.json."""
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises bare Exception
        raise InputError(key, repr(path), "a Hugging Face tokenizer.json", str(error)) from error
    tokenizer.no_truncation()  # the job decides about long and short texts
    tokenizer.no_padding()
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> npt.NDArray[np.int64]:
    """Return the token ids of ``text``; int64 ``[tokens]``. Encodes line by line to bound memory."""
    lines = tokenizer.encode_batch_fast(text.splitlines(keepends=True), add_special_tokens=False)
    return np.concatenate([np.zeros(0, np.int64), *(np.asarray(line.ids, np.int64) for line in lines)])


def token_dtype(vocab_size: int) -> type[np.uint16] | type[np.int32]:
    """Return the smallest integer type for the vocabulary: two bytes per token are half the bytes to move."""
    return np.uint16 if vocab_size <= 1 << 16 else np.int32
