"""Steps with a loss, a gradient or a weight that is not finite, with real DeepSpeed engines."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from drivetrain_workers.modeling.context import TrainContext

from tests.unit.engine_cases import BAD, GLOBAL_BATCH, STEPS, bad_step, batch_of, first_norm, parts, parts_loss
from tests.unit.gang import Gang, run_gangs

_RATES = [0.005, 0.01, 0.01, 0.01 - 0.009 / 18, 0.01 - 2 * 0.009 / 18]  # of a linear schedule


def _table() -> list[dict[str, Any]]:
    rows = [
        {"zero_stage": stage, "precision": precision, "gradient_clipping": clipping, "rank": rank, "kind": "gradient"}
        for precision in ("fp32", "bf16")
        for stage in ((0, 1, 2, 3) if precision == "fp32" else (1, 2, 3))
        for clipping in (0.0, 0.5)
        for rank in (None, 0, 1)
    ]
    others = [{**row, "kind": "loss"} for row in rows if row["rank"] == 1 and not row["gradient_clipping"]]
    overflows = [{**row, "kind": "weight"} for row in rows if row["rank"] is None and not row["gradient_clipping"]]
    return [*rows, *others, *overflows]


def test_a_bad_step_is_detected_in_that_step_on_every_rank(tmp_path: Path) -> None:
    """The update is not applied, and the schedule continues; except where the update itself is bad."""
    cases = _table()
    (results,) = run_gangs(bad_step, [Gang(2, cases)], tmp_path)
    for case, ranks in zip(cases, results, strict=True):
        for result in ranks:
            assert repr(result) == repr(ranks[0]), case
            fatal = case["kind"] == "weight"
            assert result["alarms"][: BAD + 1] == [None] * BAD + [["non_finite", fatal]], case
            if fatal:
                continue
            assert result["alarms"][BAD + 1] is None, case
            assert result["unchanged"], case
            assert result["learning_rates"] == pytest.approx(_RATES), case
            ordinary = [norm for step, norm in enumerate(result["norms"]) if step != BAD]
            assert not math.isfinite(result["norms"][BAD]), case
            assert all(0 < norm < 100 for norm in ordinary), case


def plain_norm() -> float:
    model = parts(uneven=False)
    batch = {column: torch.from_numpy(values) for column, values in batch_of(0).items()}
    parts_loss(model, batch, TrainContext(0, STEPS, True, 0, 1, 0, torch.arange(GLOBAL_BATCH))).backward()
    return float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))


def test_the_norm_is_that_of_the_whole_gradient(tmp_path: Path) -> None:
    """Before clipping; absent where the job disables it, and never 0."""
    cases: list[dict[str, Any]] = [
        {"zero_stage": stage, "gradient_clipping": clipping} for stage in (0, 1, 2, 3) for clipping in (0.0, 0.1)
    ]
    disabled = {"gradient_clipping": 0.0, "deepspeed": {"zero_optimization": {"compute_grad_norm": False}}}
    gangs = [Gang(world_size, [*cases, disabled]) for world_size in (1, 2)]
    for *computed, absent in run_gangs(first_norm, gangs, tmp_path):
        for ranks in computed:
            for norms in ranks:
                assert norms[0] == pytest.approx(plain_norm(), rel=1e-5)
        assert absent == [[None, None]] * len(absent)
