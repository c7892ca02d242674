"""Summaries of an account, an assessment, a live view and a cluster."""

from __future__ import annotations

import json
from typing import Any

import pytest
from drivetrain.accounting.summary import describe_cost, describe_time
from drivetrain.reporting.assessment import describe_assessment
from drivetrain.runs.facts import RunFacts
from drivetrain.runs.view import RunView
from drivetrain.scheduling.status import NodeStatus
from drivetrain_workers.protocol.events import RankId, StepDone

from tests.unit.server import CLUSTER
from tests.unit.step_records import step_record


def account(**changes: Any) -> dict[str, Any]:
    ordinary = {"wall_s": 200.0, "goodput": 0.625, "seconds": {"queued": 50.0, "computing": 125.0, "saving": 25.0}}
    costs = {"worker_hours": 0.111, "dollars": None, "energy_kwh": None, "energy_from": "", "co2_kg": None}
    return {**ordinary, **costs, **changes}


def test_time_names_the_largest_classes() -> None:
    assert describe_time(account()) == "0:03:20, goodput 62%: computing 62%, queued 25%, saving 12%"


def test_time_skips_small_classes() -> None:
    seconds = {"queued": 1.0, "preparing": 2.0, "starting": 3.0, "saving": 4.0, "computing": 90.0, "idle": 0.1}
    found = describe_time(account(wall_s=100.1, seconds=seconds, goodput=0.9))
    assert found == "0:01:40, goodput 90%: computing 90%, saving 4%, starting 3%, preparing 2%"
    assert describe_time(account(wall_s=90_000.0, seconds={"idle": 90_000.0}, goodput=0.0)) == (
        "1 day, 1:00:00, goodput 0%: idle 100%"
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "0.111 worker hours"),
        ({"dollars": 0.0}, "0.111 worker hours, $0.00"),
        ({"dollars": 12.345}, "0.111 worker hours, $12.35"),
        (
            {"energy_kwh": 0.0123, "co2_kg": 0.00547, "energy_from": "nvml"},
            "0.111 worker hours, 12.3 Wh (nvml), 5.47 g CO2",
        ),
        (
            {"energy_kwh": 123.4, "co2_kg": 54.9, "energy_from": "rapl", "dollars": 1.0},
            "0.111 worker hours, $1.00, 123 kWh (rapl), 54.9 kg CO2",
        ),
        (
            {"energy_kwh": 0.1, "co2_kg": 0.0, "energy_from": "rapl, estimate"},
            "0.111 worker hours, 0.1 kWh (rapl, estimated), 0 g CO2",
        ),
    ],
)
def test_costs_are_shown_as_far_as_known(changes: dict[str, Any], text: str) -> None:
    assert describe_cost(account(**changes)) == text


def test_an_assessment_of_nothing_says_nothing() -> None:
    assert describe_assessment({"scores": {}, "slices": []}) == []


def test_the_worst_slice_comes_without_an_accuracy_where_there_is_none() -> None:
    slices = [{"name": "rare", "accuracy": None, "loss": 2.5, "decisions": 1234}, {"name": "other"}]
    assert describe_assessment({"scores": {}, "slices": slices}) == [("worst slice", "rare: loss 2.5, of 1,234")]


@pytest.mark.parametrize(
    ("winner", "text"), [("network", "the model is better"), ("logistic regression", "logistic regression is better")]
)
def test_who_is_better(winner: str, text: str) -> None:
    scores = {"log_loss": 0.5, "accuracy": 0.875}
    baseline = {"name": "logistic regression", "metric": "accuracy", "scores": scores, "network": 0.9, "winner": winner}
    found = dict(describe_assessment({"scores": {"log_loss": 0.25}, "slices": [], "baseline": baseline}))
    assert found["assessed"] == "log loss 0.25"
    assert found["baseline"] == f"logistic regression: accuracy 0.875, model 0.9: {text}"


# Live figures -----------------------------------------------------------------------------------------------------


def stepped(view: RunView, step: int, step_s: float, wait_s: float = 0.0, tokens: int = 100) -> None:
    view.record_step(StepDone(RankId(0, 1), step_record(step), step_s, wait_s, tokens))


def test_speed_is_that_of_the_newest_steps() -> None:
    view = RunView("toy-1", steps=100)
    stepped(view, 1, 30.0, 15.0)  # the first one compiles
    assert (view.step_s, view.data_wait_share, view.eta_s) == (30.0, 0.5, 99 * 30.0)
    for step in range(2, 22):
        stepped(view, step, 0.5, 0.05)
    assert (view.step, view.loss, view.learning_rate) == (21, 1.0 / 21, 0.1)
    assert view.step_s == pytest.approx(0.5)
    assert view.tokens_per_s == pytest.approx(200)
    assert view.data_wait_share == pytest.approx(0.1)
    assert view.eta_s == pytest.approx(79 * 0.5)


def test_a_slow_step_counts_by_its_length() -> None:
    view = RunView("toy-1", steps=2)
    stepped(view, 1, 1.0, tokens=100)
    stepped(view, 2, 3.0, tokens=100)
    assert view.tokens_per_s == 50.0, "tokens over seconds, not a mean of speeds"
    assert view.eta_s == 0.0


def test_a_view_comes_back_from_json() -> None:
    facts = RunFacts(eval_loss=1.0, skipped_first=("a", "b"))
    view = RunView("toy-1", "preparing", 3, (1, 4, "making shards"), metrics={"accuracy": 0.5}, facts=facts)
    record = json.loads(json.dumps(view.to_json()))
    assert RunView.from_json(record) == view
    assert RunView.from_json({**record, "of a newer version": 1}) == view
    del record["waiting"]
    assert RunView.from_json(record).waiting == ""


def test_a_copy_stays_as_it_was() -> None:
    view = RunView("toy-1", steps=9)
    view.mark("requested", 10.0)
    copy = view.copy()
    stepped(view, 1, 1.0)
    view.mark("stepped", 12.5)
    assert (copy.step, copy.loss, copy.timeline, copy.start_s) == (0, None, {"requested": 10.0}, None)
    assert view.start_s == 2.5


def test_a_mark_without_a_time_is_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    view = RunView("toy-1")
    monkeypatch.setattr("drivetrain.runs.view.time.time", lambda: 77.0)
    view.mark("requested")
    assert view.timeline == {"requested": 77.0}


# The cluster ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("draining", "until", "state"),
    [
        (False, 0.0, "usable"),
        (False, None, "usable"),
        (True, 0.0, "draining"),
        (False, 2e9, "quarantined"),
        (True, 2e9, "quarantined"),
    ],
)
def test_a_node_has_one_state(draining: bool, until: float | None, state: str) -> None:
    assert NodeStatus("a", "10.0.0.1", 8.0, 0.0, draining, until).state == state


def test_an_entry_of_the_queue_is_json() -> None:
    """JSON has no infinity, which stands for an unknown run time."""
    first, second = [json.loads(json.dumps(entry.to_json(), allow_nan=False)) for entry in CLUSTER.queue]
    assert (first["run"], first["waits_for"], first["why"]) == ("toy-2", "an allocation", "no room")
    assert (first["workers"], first["min_workers"], first["priority"]) == (2, 1, 5)
    assert (first["expected_s"], second["expected_s"]) == (None, 60.0)
