from __future__ import annotations

from typing import Any

import pytest
from drivetrain.accounting.budget import overspent, since_resumed
from drivetrain.accounting.cost import allocated_seconds, cost, worker_seconds
from drivetrain.job.spec import JobSpec, ResourcesSpec
from drivetrain.runs import states as st
from drivetrain_workers.protocol.reasons import Reason
from pydantic import ValidationError

PLACE = st.Allocation((("a", 2), ("b", 1)))
HISTORY = [
    (100.0, "", st.Preparing()),
    (110.0, "", st.Placing("d", PLACE)),
    (120.0, "", st.Training("d", PLACE)),
    (3710.0, "", st.Ready("d")),
    (3720.0, "", st.Training("d", st.Allocation((("a", 1),)))),
    (7320.0, "", st.Ended(Reason.CANCELLED)),
]


def job(budget: dict[str, Any], **resources: Any) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "job",
            "data": {"name": "d", "source": "x.txt", "tokenizer": {"vocab_size": 300}, "sequence_length": 8},
            "model": {"factory": "a:b"},
            "training": {"steps": 1},
            "resources": resources,
            "budget": budget,
        }
    )


def test_workers_count_during_an_allocation() -> None:
    assert allocated_seconds(HISTORY, 9999.0) == 7200
    assert worker_seconds(HISTORY, 9999.0) == 3 * 3600 + 3600
    assert worker_seconds(HISTORY[:3], 150.0) == 3 * 40


def test_cost() -> None:
    found = cost(4 * 3600, 7.2e6, "nvml", ResourcesSpec(price_per_hour=2.5, co2_g_per_kwh=400))
    assert (found.worker_hours, found.dollars, found.energy_kwh, found.co2_kg) == (4, 10, 2, 0.8)
    nothing = cost(4 * 3600, None, "", ResourcesSpec())
    assert (nothing.dollars, nothing.energy_kwh, nothing.co2_kg) == (None, None, None)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ({}, ""),
        ({"hours": 2.1}, ""),
        ({"hours": 2.0}, "budget.hours of 2 is spent"),
        ({"dollars": 8.1}, ""),
        ({"dollars": 8, "hours": 1}, "budget.hours of 1 is spent, budget.dollars of 8 is spent"),
        ({"energy_kwh": 1.0}, "budget.energy_kwh of 1 is spent"),
    ],
)
def test_budget(budget: dict[str, float], expected: str) -> None:
    assert overspent(job(budget, price_per_hour=2.0), HISTORY, 3.6e6, 9999.0) == expected


def test_a_resume_resets_the_budget() -> None:
    resumed = [*HISTORY, (8000.0, "", st.Queued()), (8010.0, "", st.Training("d", PLACE))]
    assert allocated_seconds(since_resumed(resumed), 8030.0) == 20
    assert since_resumed(HISTORY) == HISTORY


def test_dollars_need_a_price() -> None:
    with pytest.raises(ValidationError, match=r"budget\.dollars needs resources\.price_per_hour"):
        job({"dollars": 5})
