"""Text generation token by token: with a cache the result is the same as without."""

from __future__ import annotations

import pytest
import torch
from drivetrain_pipelines.prepare.tokenizer import END_OF_TEXT, TextEncoder, train_tokenizer
from drivetrain_pipelines.spec import TokenizerSpec
from drivetrain_workers.inference.generation import Sampling, generate
from drivetrain_workers.recipes.language_model.model import GPT, gpt
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

TOKENIZER = train_tokenizer(["the cat sat on the mat", "a dog ran far away"], 300, ["<|to|>"])
LENGTH = 24


class Forgetful(GPT):
    """The same network without a parameter ``cache``."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(tokens)


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    return gpt(TOKENIZER.get_vocab_size(), LENGTH, layers=3, width=48, heads=4).eval()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("prompt", ["the cat", "", "the cat sat on the mat and a dog ran far away and the cat sat on"])
def test_a_cache_changes_nothing(model: GPT, prompt: str, seed: int) -> None:
    """Also beyond the window, where the cache cannot be used."""
    sampling = Sampling(max_tokens=40, temperature=1.0, top_k=40, seed=seed)
    kept = generate(model, TOKENIZER, prompt, LENGTH, sampling)
    model.__class__ = Forgetful
    assert generate(model, TOKENIZER, prompt, LENGTH, sampling) == kept


def test_each_token_is_computed_once(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    forward = model.forward

    def watched(tokens: torch.Tensor, cache: dict[int, dict[str, torch.Tensor]] | None = None) -> torch.Tensor:
        widths.append(tokens.shape[1])
        return forward(tokens, cache)

    monkeypatch.setattr(model, "forward", watched)
    generate(model, TOKENIZER, "the cat sat", LENGTH, Sampling(8, 1.0, 40, 0))
    assert widths[1:] == [1] * (len(widths) - 1)


def test_several_tokens_attend_to_previous_ones(model: GPT) -> None:
    tokens = torch.randint(1, 200, (2, 12))
    cache: dict[int, dict[str, torch.Tensor]] = {}
    with torch.no_grad():
        parts = [model(tokens[:, :5], cache), model(tokens[:, 5:9], cache), model(tokens[:, 9:], cache)]
        torch.testing.assert_close(torch.cat(parts, 1), model(tokens), rtol=1e-4, atol=1e-5)


def test_generation_stops_at_the_end_of_the_text() -> None:
    class Ends(torch.nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(*tokens.shape, TOKENIZER.get_vocab_size())
            logits[..., TOKENIZER.token_to_id(END_OF_TEXT) if tokens.shape[1] > 4 else 70] = 99.0
            return logits

    prompt, continuation = generate(Ends(), TOKENIZER, "the", LENGTH, Sampling(40, 0.0, 5, 0))
    assert prompt == "the"
    assert 0 < len(TOKENIZER.encode(continuation).ids) < 5


class Says(torch.nn.Module):
    """A model that says the given tokens after the prompt, and then the last one again and again."""

    def __init__(self, ids: list[int], prompt: int, size: int) -> None:
        super().__init__()
        self.ids, self.prompt, self.size, self.calls = ids, prompt, size, 0

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        logits = torch.zeros(*tokens.shape, self.size)
        logits[..., self.ids[min(tokens.shape[1] - self.prompt, len(self.ids) - 1)]] = 99.0
        return logits


def say(text: str, *, tokenizer: Tokenizer = TOKENIZER, stop: tuple[str, ...] = (), **spec: str) -> tuple[str, int]:
    """Return the continuation by a model that says a text and then repeats its last token, and its number of tokens."""
    ids, prompt = tokenizer.encode(text, add_special_tokens=False).ids, "the cat"
    encoder = TextEncoder(tokenizer, TokenizerSpec(**spec))
    model = Says(ids, len(encoder.prompt(prompt)), encoder.vocab_size)
    found = generate(model, tokenizer, prompt, 512, Sampling(60, 0.0, 5, 0, stop), TokenizerSpec(**spec))
    assert found[0] == prompt
    return found[1], model.calls


@pytest.mark.parametrize("end", ["</s>", "<|endoftext|>", "<|im_end|>", "<eos>", "<|eot_id|>", "<end_of_turn>"])
def test_generation_stops_at_each_end_token_of_the_tokenizer(end: str) -> None:
    tokenizer = train_tokenizer(["the cat sat on the mat"], 300, ["<|other|>"])
    tokenizer.add_special_tokens([end, "<|eot_id|>"])
    for token in (end, "<|eot_id|>", "<|endoftext|>"):
        said, calls = say(f" sat on<|other|>{token} the mat", tokenizer=tokenizer)
        assert said == " sat on"
        assert calls < 60
    said, calls = say(" sat on<|other|> the mat", tokenizer=tokenizer)
    assert (said.startswith(" sat on the mat"), calls) == (True, 60)


def test_the_job_may_name_the_end_token() -> None:
    assert say(" sat<|to|> on", end_token="<|to|>")[0] == " sat"
    assert say(" sat<|to|> on")[0].startswith(" sat on")


@given(
    words=st.lists(st.sampled_from([" cat", " sat", ".", "\n", "é", " mat", "USER:"]), min_size=1, max_size=8),
    stops=st.lists(st.sampled_from(["USER:", "\n", "at.", "é", "t s", "<|to|>", "never"]), max_size=3),
)
def test_generation_stops_before_the_first_stop_text(words: list[str], stops: list[str]) -> None:
    """Whatever tokens it is made of; nothing of it is said, and no later token is computed."""
    text = "".join(words)
    said, calls = say(f"{text}<|endoftext|>", stop=tuple(stops))
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    assert said == text[: min(found, default=len(text))]
    assert calls <= len(TOKENIZER.encode(text).ids) + 1


def test_a_stop_text_may_be_a_special_token() -> None:
    assert say(" sat<|to|> on the", stop=("<|to|>",))[0] == " sat"


def test_a_space_between_prompt_and_continuation_is_kept() -> None:
    """The decoders of many published tokenizers drop the space at the begin of a text."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "▁the": 1, "▁cat": 2, "▁sat": 3, "</s>": 4}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["</s>"])
    assert say(" sat</s>", tokenizer=tokenizer)[0] == " sat"


def test_temperature_zero_is_greedy(model: GPT) -> None:
    spoken = {generate(model, TOKENIZER, "a dog", LENGTH, Sampling(10, 0.0, 40, seed))[1] for seed in range(4)}
    assert len(spoken) == 1
