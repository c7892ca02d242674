"""Text generation token by token: with a cache the result is the same as without."""

from __future__ import annotations

import pytest
import torch
from drivetrain_pipelines.prepare.tokenizer import END_OF_TEXT, train_tokenizer
from drivetrain_workers.inference.generation import Sampling, generate
from drivetrain_workers.recipes.language_model.model import GPT, gpt

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


def test_temperature_zero_is_greedy(model: GPT) -> None:
    spoken = {generate(model, TOKENIZER, "a dog", LENGTH, Sampling(10, 0.0, 40, seed))[1] for seed in range(4)}
    assert len(spoken) == 1
