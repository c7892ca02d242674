"""Tokenizers (Hugging Face ``tokenizers``): a trained byte-level BPE, or the job's, used as it encodes by itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer, decoders, models, pre_tokenizers, trainers

from drivetrain_pipelines.errors import InputError, PrepareError
from drivetrain_pipelines.raw.windows import MARGIN, width_after, width_before
from drivetrain_pipelines.spec import TokenizerSpec

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_FILE = "tokenizer.json"  # in the folder of the dataset version

# Names that published tokenizers give to these tokens, the most specific first.
_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "[SEP]")
_PADDINGS = ("<pad>", "[PAD]", "<|pad|>", "<PAD>", "<|finetune_right_pad_id|>", "<|padding|>")

TokenArray = npt.NDArray[np.int64]


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


class TextEncoder:
    """Encodes texts exactly as ``Tokenizer.encode`` does, with the special tokens of the tokenizer's own template.

    Attributes:
        vocab_size: largest id that the tokenizer can give, plus one.
    """

    def __init__(self, tokenizer: Tokenizer, spec: TokenizerSpec | None = None, margin: int = MARGIN) -> None:
        self._tokenizer, self._spec, self._margin = tokenizer, spec or TokenizerSpec(), margin
        self._ids = tokenizer.get_vocab(with_added_tokens=True)
        self._special = {
            token.content: id_ for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special
        }
        self.vocab_size = max(self._ids.values()) + 1
        probe = tokenizer.encode("a")
        kept = [n for n, special in enumerate(probe.special_tokens_mask) if not special]
        first, last = (kept[0], kept[-1] + 1) if kept else (len(probe.ids), len(probe.ids))
        self._prefix, self._suffix = probe.ids[:first], probe.ids[last:]

    @property
    def end(self) -> int:
        """Id of the token that ends a document.

        Raises:
            InputError: the tokenizer does not show which token that is, or the job names one that it lacks.
        """
        key = "data.tokenizer.end_token"
        if self._spec.end_token:
            return self._named(key, self._spec.end_token)
        names = [name for name in _ENDS if name in self._special]
        in_template = [name for name in names if self._special[name] in self._suffix]
        if not names:
            raise InputError(
                key, "nothing", self._choices(), "The tokenizer does not show which token ends a document."
            )
        return self._special[(in_template or names)[0]]

    @property
    def ends(self) -> list[int]:
        """Ids of all special tokens that end a text or a turn, for generation; empty if there are none."""
        named = [self._spec.end_token] if self._spec.end_token else []
        return sorted({self._ids[name] for name in named} | {self._special[n] for n in _ENDS if n in self._special})

    def prompt(self, text: str) -> list[int]:
        """Return the ids of a text that is to be continued: with what the template puts before it, without its end."""
        return [*self._prefix, *self._tokenizer.encode(text, add_special_tokens=False).ids]

    @property
    def padding(self) -> int:
        """Id that fills short samples: the padding token, else a special token with id 0, else the end token.

        Raises:
            InputError: there is none of them.
        """
        key = "data.tokenizer.padding_token"
        if self._spec.padding_token:
            return self._named(key, self._spec.padding_token)
        for name in _PADDINGS:
            if name in self._special:
                return self._special[name]
        if 0 in self._special.values():
            return 0
        try:
            return self.end
        except InputError as error:
            raise InputError(key, "nothing", self._choices(), "The tokenizer has no padding token.") from error

    def documents(self, texts: Sequence[str]) -> list[TokenArray]:
        """Encode whole documents; one int64 array each, with the end token unless the template has put it there."""
        end = self.end
        encoded = (encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts)))
        return [np.array(ids if ids and ids[-1] == end else [*ids, end], np.int64) for ids in encoded]

    def padded(self, texts: Sequence[str], width: int) -> tuple[TokenArray, TokenArray]:
        """Encode each text to one row of ``width`` tokens, cut as the tokenizer cuts, or padded at its end.

        Returns:
            Tokens int64 ``[texts, width]``, and the number of tokens cut off each text.
        """
        tokens = np.full((len(texts), width), self.padding, np.int64)
        dropped = np.zeros(len(texts), np.int64)
        self._tokenizer.enable_truncation(width)
        try:
            for row, encoding in enumerate(self._tokenizer.encode_batch_fast(list(texts))):
                tokens[row, : len(encoding.ids)] = encoding.ids
                dropped[row] = sum(more.special_tokens_mask.count(0) for more in encoding.overflowing)
        finally:
            self._tokenizer.no_truncation()
        return tokens, dropped

    def window(self, before: str, text: str, after: str) -> TokenArray:
        """Encode a window of running text (`drivetrain_pipelines.raw.windows`).

        The arrays of all windows of a file, joined, are the encoding of the whole file and its end token.

        Raises:
            PrepareError: the tokens here depend on text that is farther away than the margins.
        """
        encoding = self._tokenizer.encode(before + text + after, add_special_tokens=False)
        starts = _starts(encoding)
        first, last = len(before), len(before) + len(text)
        if before:
            self._check_cut(encoding, starts, before + text + after, first)
        if after:
            self._check_cut(encoding, starts, before + text + after, last)
        own = slice(
            int(np.searchsorted(starts, first)) if before else 0,
            int(np.searchsorted(starts, last)) if after else len(starts),
        )
        ids = [*([] if before else self._prefix), *encoding.ids[own], *([] if after else self._suffix)]
        if not after and (not ids or ids[-1] != self.end):
            ids.append(self.end)
        return np.array(ids, np.int64)

    def _check_cut(self, encoding: Encoding, starts: TokenArray, text: str, cut: int) -> None:
        """Check that tokens near a cut are those that its margins alone give: then both sides of it agree on them."""
        left, right = width_before(text[:cut], self._margin), width_after(text[cut:], self._margin)
        alone = self._tokenizer.encode(text[cut - left : cut + right], add_special_tokens=False)
        alone_starts = _starts(alone) + (cut - left)
        low, high = cut - left // 2, cut + right // 2

        def near(ids: list[int], at: TokenArray) -> list[tuple[int, int]]:
            part = slice(int(np.searchsorted(at, low)), int(np.searchsorted(at, high)))
            return list(zip(ids[part], at[part].tolist(), strict=True))

        if near(encoding.ids, starts) != near(alone.ids, alone_starts):
            shown = text[max(0, cut - 20) : cut + 20]
            raise PrepareError(
                f"the tokens near {shown!r} depend on text that is more than {left // 2} characters away",
                "Give such text as documents: data.format documents, or JSON lines",
            )

    def _named(self, key: str, name: str) -> int:
        if name not in self._ids:
            raise InputError(key, repr(name), self._choices())
        return self._ids[name]

    def _choices(self) -> str:
        return (
            f"a token of the tokenizer, such as {', '.join(map(repr, list(self._special)[:8]))}"
            if self._special
            else ("a token of the tokenizer")
        )


def _starts(encoding: Encoding) -> TokenArray:
    """Return the position of the first character of each token."""
    return np.array([start for start, _ in encoding.offsets], np.int64)


def token_dtype(vocab_size: int) -> type[np.uint16] | type[np.int32]:
    """Return the smallest integer type for the vocabulary: two bytes per token are half the bytes to move."""
    return np.uint16 if vocab_size <= 1 << 16 else np.int32
