"""A tokenizer file is used as the tokenizer itself encodes, compared for the four kinds in use."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from drivetrain_pipelines.errors import InputError, PrepareError
from drivetrain_pipelines.prepare.tokenizer import TextEncoder, load_tokenizer, train_tokenizer
from drivetrain_pipelines.raw.windows import BadWindow, Window, windows
from drivetrain_pipelines.spec import TokenizerSpec
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SOME_TEXT = [
    f"def f{i}(x):\n\n    y = x + {i}  # Straße, naïve, 東京\n\n\n\treturn y\r\n\x0cpage\u2028line 🙂 ==== <b>"
    for i in range(200)
]
SPECIALS = {"special_tokens": ["<unk>", "<s>", "</s>", "<pad>"], "show_progress": False}
WINDOW, MARGIN = 4096, 32


def _byte_level() -> Tokenizer:
    """As Llama 3: digits in threes, line ends joined to punctuation, a token at the start."""
    made = Tokenizer(models.BPE())
    pattern = r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(SOME_TEXT, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, **SPECIALS))
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def _bpe() -> Tokenizer:
    """As Llama 2: no words, so merges may cross any boundary."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    made.train_from_iterator(
        [word for text in SOME_TEXT for word in text.split(" ")], trainers.BpeTrainer(vocab_size=300, **SPECIALS)
    )
    return made


def _sentencepiece() -> Tokenizer:
    """As T5: normalized, unigram, ``</s>`` at the end."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.train_from_iterator(SOME_TEXT, trainers.UnigramTrainer(vocab_size=300, unk_token="<unk>", **SPECIALS))
    end = made.token_to_id("</s>")
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    return made


def _word_piece() -> Tokenizer:
    """As BERT: lower case, words, ``[CLS]`` and ``[SEP]``."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    made.train_from_iterator(SOME_TEXT, trainers.WordPieceTrainer(vocab_size=300, special_tokens=names))
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


TRAINED = {
    "byte level": _byte_level(),
    "BPE": _bpe(),
    "SentencePiece": _sentencepiece(),
    "WordPiece": _word_piece(),
    "trained": train_tokenizer(SOME_TEXT, 400),
}
TOKENIZERS = {kind: Tokenizer.from_str(made.to_str()) for kind, made in TRAINED.items()}  # scores are rounded in a file
KINDS = pytest.mark.parametrize("kind", TOKENIZERS)
LINES = st.sampled_from(
    [
        "def f(x):\n",
        "    return x\n",
        "\n\n",
        "\ttab\t\n",
        "Straße 東京\n",
        "a",
        " ",
        "🙂🙂",
        "</s>",
        "123456",
        "e\u0301",
        "====\r\n",
    ]
)
TEXTS = st.one_of(st.text(), st.lists(LINES, max_size=40).map("".join))


def _loaded(kind: str) -> Tokenizer:
    return load_tokenizer(TOKENIZERS[kind].to_str().encode(), "tokenizer.json")


@KINDS
@given(texts=st.lists(TEXTS, max_size=5))
def test_documents_are_encoded_as_the_tokenizer_does(kind: str, texts: list[str]) -> None:
    encoder = TextEncoder(_loaded(kind))
    for text, made in zip(texts, encoder.documents(texts), strict=True):
        want = TOKENIZERS[kind].encode(text).ids
        assert made.tolist() == (want if want[-1:] == [encoder.end] else [*want, encoder.end])


@KINDS
@given(texts=st.lists(TEXTS, min_size=1, max_size=5), width=st.integers(4, 40))
def test_padded_rows_are_those_of_the_tokenizer(kind: str, texts: list[str], width: int) -> None:
    encoder, own = TextEncoder(_loaded(kind)), _loaded(kind)
    own.enable_truncation(width)
    own.enable_padding(pad_id=encoder.padding, length=width)
    assert encoder.padded(texts, width).tolist() == [encoding.ids for encoding in own.encode_batch(texts)]


def _long_text(seed: int) -> str:
    choose = random.Random(seed)
    pieces = [
        *SOME_TEXT,
        "=" * 300 + "\n",
        "ab" * 100 + "\n",
        "東京都" * 50,
        "🙂" * 70,
        " " * 200,
        "word " * 40,
        "\n" * 90,
        "</s>",
    ]
    return "".join(choose.choice(pieces) for _ in range(200))


def _encoded(encoder: TextEncoder, text: bytes, starts: list[int]) -> list[int]:
    """Encode in windows, each range between two starts separately."""
    made = []
    for start, stop in zip(starts, [*starts[1:], len(text)], strict=True):
        for window in windows(lambda a, b: text[a:b], len(text), start, stop, WINDOW, MARGIN):
            assert isinstance(window, Window)
            made += encoder.window(window.before, window.text, window.after).tolist()
    return made


@KINDS
@pytest.mark.parametrize("seed", range(5))
def test_windows_join_to_the_encoding_of_the_whole_text(kind: str, seed: int) -> None:
    text = _long_text(seed)
    encoder = TextEncoder(_loaded(kind), margin=MARGIN)
    want = TOKENIZERS[kind].encode(text).ids
    want = want if want[-1] == encoder.end else [*want, encoder.end]
    content = text.encode()
    choose = random.Random(seed)
    cuts = sorted({0, *(choose.randrange(len(content) // WINDOW) * WINDOW for _ in range(seed))})
    assert _encoded(encoder, content, cuts) == want


def test_tokens_that_depend_on_text_far_away_are_refused() -> None:
    """Threes of a long run, counted from its start, cannot be known from its middle."""
    made = Tokenizer(models.WordLevel({"a": 0, "aa": 1, "aaa": 2, "</s>": 3}, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("a{1,3}"), "isolated")
    made.add_special_tokens(["</s>"])
    with pytest.raises(PrepareError, match=r"data\.format documents"):
        _encoded(TextEncoder(made, margin=MARGIN), b"a" * 3 * WINDOW, [0])


@given(seed=st.integers(0, 1 << 30), start=st.integers(0, 20), length=st.integers(0, 20))
def test_windows_divide_a_text_at_characters(seed: int, start: int, length: int) -> None:
    content = _long_text(seed)[:40_000].encode()
    every = list(windows(lambda a, b: content[a:b], len(content), window=WINDOW, margin=MARGIN))
    whole = [window for window in every if isinstance(window, Window)]
    assert whole == every
    assert "".join(window.text for window in whole) == content.decode()
    first, last = min(start * WINDOW, len(content)), min((start + length) * WINDOW, len(content))
    part = list(windows(lambda a, b: content[a:b], len(content), first, last, WINDOW, MARGIN))
    assert part == every[start : start + length]
    for left, right in itertools.pairwise(whole):
        assert left.text.endswith(right.before) or right.before.endswith(left.text)
        assert right.text.startswith(left.after) or left.after.startswith(right.text)
    assert (whole[0].before, whole[-1].after) == ("", "")


def test_bytes_that_are_no_text_spoil_one_window() -> None:
    content = b"a" * 5000 + b"\xff" + b"b" * 5000
    made = list(windows(lambda a, b: content[a:b], len(content), window=WINDOW, margin=MARGIN))
    assert [type(window) for window in made] == [Window, BadWindow, Window]
    assert isinstance(made[1], BadWindow)
    assert made[1].byte == 5000
    assert isinstance(made[2], Window)
    assert set(made[2].before) == {"b"}


def test_a_byte_order_mark_is_no_text() -> None:
    content = "\ufeffabc".encode()
    assert list(windows(lambda a, b: content[a:b], len(content))) == [Window("", "abc", "")]


def _word_level(tokens: list[str], special: list[str]) -> Tokenizer:
    made = Tokenizer(models.WordLevel({name: number for number, name in enumerate(tokens)}, unk_token=tokens[0]))
    made.add_special_tokens(special)
    return made


@pytest.mark.parametrize(
    ("tokens", "special", "end", "padding"),
    [
        (["<unk>", "<s>", "</s>"], ["<unk>", "<s>", "</s>"], 2, 0),  # Llama 2 has no padding token
        (["<|endoftext|>", "a"], ["<|endoftext|>"], 0, 0),
        (["a", "b", "<|endoftext|>"], ["<|endoftext|>"], 2, 2),  # GPT-2: id 0 is a word
        (["<pad>", "</s>", "a"], ["<pad>", "</s>"], 1, 0),
        (["a", "<eos>", "[PAD]"], ["<eos>", "[PAD]"], 1, 2),
    ],
)
def test_special_tokens_are_found(tokens: list[str], special: list[str], end: int, padding: int) -> None:
    encoder = TextEncoder(_word_level(tokens, special))
    assert (encoder.end, encoder.padding) == (end, padding)


def test_special_tokens_may_be_named() -> None:
    made = TextEncoder(_word_level(["a", "stop", "blank"], []), TokenizerSpec(end_token="stop", padding_token="blank"))
    assert (made.end, made.padding, made.ends) == (1, 2, [1])


@pytest.mark.parametrize(
    ("spec", "ask", "message"),
    [
        ({}, lambda encoder: encoder.end, "data.tokenizer.end_token: got nothing"),
        ({}, lambda encoder: encoder.padding, "data.tokenizer.padding_token: got nothing"),
        ({"end_token": "x"}, lambda encoder: encoder.end, "data.tokenizer.end_token: got 'x'"),
        ({"padding_token": "x"}, lambda encoder: encoder.padding, "data.tokenizer.padding_token: got 'x'"),
    ],
)
def test_missing_special_tokens(spec: dict[str, str], ask: Callable[[Any], int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ask(TextEncoder(_word_level(["a", "b"], []), TokenizerSpec(**spec)))


def test_the_vocabulary_reaches_to_the_largest_id() -> None:
    """Ids may have gaps: what counts is the largest, not how many there are."""
    made = Tokenizer(models.WordLevel({"a": 0, "b": 70_000}, unk_token="a"))
    made.add_tokens([AddedToken("c")])
    assert made.get_vocab_size() < 10
    assert TextEncoder(made).vocab_size == 1 + max(made.get_vocab().values())
    assert np.array(made.encode("b").ids).max() < TextEncoder(made).vocab_size
