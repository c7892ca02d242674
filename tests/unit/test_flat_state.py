"""Flat buffers, and the parts of parameters in them."""

from __future__ import annotations

import torch
from drivetrain_workers.engine.flat_state import WEIGHTS, FlatState, Span


def flat(weights: torch.Tensor, *spans: Span, **optimizer: object) -> FlatState:
    return FlatState(weights, optimizer, {"lr": 0.1}, 0, list(spans))


def test_a_span_ends_where_the_next_may_begin() -> None:
    assert Span("a", start=5, length=3, at=10).end == 13


def test_runs_leave_out_padding() -> None:
    a, b, c, d = Span("a", 0, 3, 0), Span("b", 4, 2, 3), Span("c", 0, 1, 8), Span("d", 0, 4, 9)
    assert list(flat(torch.zeros(16), a, b, c, d).runs()) == [(0, 5, [a, b]), (8, 13, [c, d])]
    assert list(flat(torch.zeros(16), c).runs()) == [(8, 9, [c])]
    assert list(flat(torch.zeros(16)).runs()) == []  # no part of any parameter is on this rank


def test_tensors_are_views_of_weights_and_moments() -> None:
    weights, moment = torch.zeros(2, 3), torch.ones(2, 3)
    counter, other, setting = torch.tensor(4.0), torch.ones(7), "foreach"
    state = flat(weights, exp_avg_sq=moment, exp_avg=moment + 1, step=counter, other=other, setting=setting)
    found = dict(state.tensors())
    assert list(found) == [WEIGHTS, "exp_avg", "exp_avg_sq"]
    assert [list(tensor.shape) for tensor in found.values()] == [[6]] * 3
    found[WEIGHTS][4] = 9.0
    found["exp_avg_sq"][0] = 8.0
    assert weights[1, 1] == 9.0
    assert moment[0, 0] == 8.0


def test_a_counter_is_no_moment_of_a_single_weight() -> None:
    state = flat(torch.tensor(1.5), step=torch.tensor(2.0))
    assert [kind for kind, _ in state.tensors()] == [WEIGHTS]


def test_scalars_are_counters_only() -> None:
    state = flat(torch.zeros(2), step=torch.tensor(7), exp_avg=torch.zeros(2), setting=True)
    assert state.scalars() == {"step": 7.0}


def test_moments_of_a_weight_without_dimensions() -> None:
    state = flat(torch.tensor(1.5), step=torch.tensor(2.0), exp_avg=torch.tensor(0.5))
    assert [kind for kind, _ in state.tensors()] == [WEIGHTS, "exp_avg"]
    assert state.scalars() == {"step": 2.0}


def test_a_counter_is_stored_without_the_missed_updates() -> None:
    state = flat(torch.zeros(2), step=torch.tensor(7.0))
    state.missed = 3
    assert state.scalars() == {"step": 10.0}
    state.create(set(), {"step": 12.0})
    assert state.optimizer["step"] == 9.0


def test_counters_stay_integers() -> None:
    """As DeepSpeed's own optimizers keep them."""
    state = flat(torch.zeros(2), step=7, setting=True)
    state.tensor_counters = False
    assert state.scalars() == {"step": 7.0}
    state.create({"exp_avg"}, {"step": 9.0})
    assert type(state.optimizer["step"]) is int
    assert state.optimizer["step"] == 9


def test_create_makes_the_entries_of_the_first_step() -> None:
    kept = torch.ones(2)
    state = flat(torch.zeros(2, dtype=torch.float32), exp_avg=kept)
    state.create({"exp_avg", "exp_avg_sq"}, {"step": 12.0})
    assert state.optimizer["exp_avg"] is kept  # the buffer that DeepSpeed uses
    assert torch.equal(state.optimizer["exp_avg_sq"], torch.zeros(2))
    assert state.scalars() == {"step": 12.0}
    state.create(set(), {"step": 13.0})
    assert state.scalars() == {"step": 13.0}
    assert [kind for kind, _ in state.tensors()] == [WEIGHTS, "exp_avg", "exp_avg_sq"]


def test_an_optimizer_continues_with_created_entries() -> None:
    """Adam with created entries and the counter of a later step computes that step."""
    results = []
    for by_hand in (False, True):
        weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        optimizer = torch.optim.AdamW([weight], lr=0.1)
        weight.grad = torch.zeros(2)
        if by_hand:
            FlatState(weight.data, optimizer.state[weight], {}, 0).create({"exp_avg", "exp_avg_sq"}, {"step": 3.0})
            weight.data *= (1 - 0.1 * 0.01) ** 3  # steps without a gradient only apply weight decay
        else:
            for _ in range(3):
                optimizer.step()
        weight.grad = torch.tensor([0.5, 0.25])
        optimizer.step()
        results.append(weight.detach().clone())
    torch.testing.assert_close(results[0], results[1])
