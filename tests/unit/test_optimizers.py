"""The optimizers of jobs compared with those of torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from drivetrain_pipelines.errors import InputError
from drivetrain_workers.engine.late_parameters import LateParameters
from drivetrain_workers.modeling.context import TrainContext

from tests.unit.engine_cases import GLOBAL_BATCH, STEPS, batch_of, optimize, parts, parts_loss
from tests.unit.gang import Gang, run_gangs

_ADAM = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.3}
_SGD = {"lr": 0.02, "momentum": 0.7, "weight_decay": 0.3}
_OPTIMIZERS: dict[str, dict[str, Any]] = {"Adam": _ADAM, "AdamW": _ADAM, "SGD": _SGD}


def plain(case: dict[str, Any]) -> tuple[dict[str, list[float]], list[float]]:
    """Train in a plain loop on whole batches; return weights and losses."""
    model, losses, clipping = parts(case["uneven"]), [], case["clipping"]
    settings = dict(case["optimizer"])
    optimizer = getattr(torch.optim, settings.pop("type"))(model.parameters(), **settings)
    for step in range(STEPS):
        batch = {column: torch.from_numpy(values) for column, values in batch_of(step).items()}
        context = TrainContext(step, STEPS, True, 0, 1, 0, torch.arange(GLOBAL_BATCH))
        loss = parts_loss(model, batch, context)
        optimizer.zero_grad()
        loss.backward()
        if clipping:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clipping)
        optimizer.step()
        losses.append(loss.item())
    return {name: parameter.detach().flatten().tolist() for name, parameter in model.named_parameters()}, losses


def case_of(name: str, stage: int, clipping: float = 0.0, **files: str) -> dict[str, Any]:
    optimizer = {"type": name, **_OPTIMIZERS[name]}
    return {"optimizer": optimizer, "stage": stage, "clipping": clipping, "uneven": stage < 2, **files}


def check(result: dict[str, Any], case: dict[str, Any]) -> None:
    weights, losses = plain(case)
    assert result["losses"] == pytest.approx(losses[-len(result["losses"]) :], abs=1e-5), case
    for name, values in weights.items():
        assert result["weights"][name] == pytest.approx(values, abs=2e-5), (case, name)


def test_every_optimizer_is_that_of_torch(tmp_path: Path) -> None:
    """At every ZeRO stage, for parameters with a gradient in every step, in some, late, never, or from one rank."""
    cases = [
        case_of(name, stage, clipping)
        for name in _OPTIMIZERS
        for stage in (0, 1, 2, 3)
        for clipping in ((0.0, 0.5) if stage < 2 else (0.5,))
    ]
    for results in run_gangs(optimize, [Gang(1, cases), Gang(2, cases)], tmp_path):
        for case, ranks in zip(cases, results, strict=True):
            for result in ranks:
                check(result, case)


def test_missed_updates_are_in_the_checkpoint(tmp_path: Path) -> None:
    """Saved at one ZeRO stage, and loaded at others."""
    even: Any = {"uneven": False}
    origins, targets = (0, 1, 3), (0, 2, 3)
    saved = [case_of("AdamW", stage, save=f"{tmp_path}/{stage}") | even for stage in origins]
    loaded = [case_of("AdamW", to, load=f"{tmp_path}/{stage}") | even for stage in origins for to in targets]
    first, second = run_gangs(optimize, [Gang(2, saved), Gang(1, loaded)], tmp_path)
    assert len(first) == len(saved)
    for case, (result,) in zip(loaded, second, strict=True):
        check(result, case)


def test_a_parameter_that_the_optimizer_does_not_know_is_refused() -> None:
    model = parts(uneven=False)
    model.late.bias.requires_grad_(False)
    late = LateParameters(model, "AdamW")
    model.late.bias.requires_grad_(True)
    with pytest.raises(InputError, match=r"parameter late\.bias was frozen and is not any more"):
        late.hold(None)


def test_gradients_of_different_parameters_are_not_added(tmp_path: Path) -> None:
    """ZeRO 2 and 3 add them if ranks have gradients for different parameters of the same size."""
    cases = [case_of("SGD", stage) | {"uneven": True} for stage in (2, 3)]
    (results,) = run_gangs(optimize, [Gang(2, cases)], tmp_path)
    for case, ranks in zip(cases, results, strict=True):
        for result in ranks:
            wanted = f"{case['stage']}, for a step in which only some ranks have a gradient for first_rows.weight"
            assert wanted in result["refused"]
