"""The modes of a model's modules: kept by evaluations and predictions, saved and restored."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drivetrain_workers.modeling.model_flags import ModelFlags, evaluation
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from tests.unit.engine_cases import keep_modes, modes_of, tree_of
from tests.unit.gang import Gang, run_gangs

_CPU = torch.device("cpu")
_PLANS = st.recursive(
    st.tuples(st.sampled_from(["linear", "dropout", "norm"]), st.booleans(), st.just([])).map(list),
    lambda children: st.tuples(
        st.sampled_from(["linear", "dropout", "norm"]), st.booleans(), st.lists(children, max_size=3)
    ).map(list),
    max_leaves=6,
)


@given(_PLANS, st.data())
def test_any_modes_survive_an_evaluation_and_a_file(plan: list[Any], data: st.DataObject) -> None:
    model = tree_of(plan)
    for module in model.modules():
        module.training = data.draw(st.booleans())
    for parameter in model.parameters():
        parameter.requires_grad_(data.draw(st.booleans()))
    flags, modes = ModelFlags.of(model), modes_of(model)
    state = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    with evaluation(model, _CPU):
        assert not any(modes_of(model))
        assert not torch.is_grad_enabled()
        model[1].train()
        model.requires_grad_(data.draw(st.booleans()))
        torch.rand(1), np.random.random(), random.random()
    assert torch.is_grad_enabled()
    assert (modes_of(model), ModelFlags.of(model)) == (modes, flags)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == state[1:]
    fresh = tree_of(plan)
    ModelFlags(**json.loads(json.dumps(asdict(flags)))).apply(fresh)
    assert modes_of(fresh) == modes
    assert [p.requires_grad for p in fresh.parameters()] == [p.requires_grad for p in model.parameters()]


def test_modes_are_restored_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout().eval())
    with pytest.raises(ZeroDivisionError), evaluation(model, _CPU):
        raise ZeroDivisionError
    assert modes_of(model) == [True, True, False]
    assert torch.is_grad_enabled()


class _Merged(nn.Linear):
    """A layer that changes its weights in eval mode, as layers of low rank do."""

    merged = False

    def train(self, mode: bool = True) -> nn.Module:
        self.merged = not mode
        return super().train(mode)


class _Frozen(nn.Module):
    """A module whose own ``train`` keeps a part in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.BatchNorm1d(2), _Merged(2, 2)
        self.train()

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.norm.eval()
        return self


def test_a_modules_own_train_is_called() -> None:
    model = nn.Sequential(_Frozen(), _Merged(2, 2))
    model[1].train(False)
    modes = modes_of(model)
    with evaluation(model, _CPU):
        assert (model[0].layer.merged, model[1].merged) == (True, True)
    assert modes_of(model) == modes
    assert (model[0].layer.merged, model[1].merged) == (False, True)


@settings(
    max_examples=1,  # of twelve trees each: a gang takes seconds to start, and is not started again for a smaller one
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(plans=st.lists(_PLANS, min_size=12, max_size=12, unique_by=str))
def test_any_modes_survive_evaluations_and_a_resume(tmp_path: Path, plans: list[Any]) -> None:
    """At every ZeRO stage."""
    folder = tmp_path / str(random.getrandbits(64))
    cases = [
        {"plan": plan, "stage": stage, "folder": f"{folder}/{stage}-{number}"}
        for number, plan in enumerate(plans)
        for stage in (number % 4,)
    ]
    (results,) = run_gangs(keep_modes, [Gang(2, cases)], folder)
    for case, ranks in zip(cases, results, strict=True):
        for kept in ranks:
            assert all(kept.values()), (case, kept)
