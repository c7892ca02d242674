from __future__ import annotations

from dataclasses import replace

import pytest
from drivetrain_pipelines.order.mixture import SampleOrder
from drivetrain_workers.protocol.step_record import StepRecord
from drivetrain_workers.records.audit import audit

from tests.unit.step_records import step_record


def ledger(steps: int, batch: int, worlds: tuple[int, ...] = (2,)) -> list[StepRecord]:
    return [
        step_record(n + 1, positions=(n * batch, (n + 1) * batch), world_size=worlds[n * len(worlds) // steps])
        for n in range(steps)
    ]


@pytest.mark.parametrize("sources", [[[30, 20]], [[30, 20], [40]]])
def test_a_clean_run(sources: list[list[int]]) -> None:
    order = SampleOrder.of(sources, [2, 1][: len(sources)], 1, 4, 8)
    found = audit(ledger(40, 8, worlds=(2, 3)), order, 8)
    assert found.problems == []
    assert found.samples == 320
    assert found.worlds == [(1, 2), (21, 3)]
    if len(sources) == 1:
        assert found.epochs == [6.4]


def test_problems_are_reported() -> None:
    order = SampleOrder.of([[50]], [1], 1, 4, 8)
    records = ledger(10, 8)
    records[4] = replace(records[4], positions=(0, 8))
    assert audit(records, order, 8).problems == ["step 5 consumed positions [0, 8] instead of [32, 40]"]
    del records[4]
    assert audit(records, order, 8).problems[0].startswith("step 5 is missing")
