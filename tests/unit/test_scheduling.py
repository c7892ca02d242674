"""The decisions of the scheduler: order, waits and preemptions; and its invariants."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from drivetrain.scheduling.free_resources import FreeResources
from drivetrain.scheduling.model import (
    Admit,
    AllocatedGang,
    Decision,
    Node,
    Placement,
    Preempt,
    Request,
    node_of,
    workers_of,
)
from drivetrain.scheduling.policy import cluster_can_hold, schedule
from drivetrain.scheduling.priority import UsageMeter
from drivetrain.scheduling.quarantine import Quarantine
from drivetrain.scheduling.rules import QueueRules, ReloadingRules, Rules, UserRules, load_rules
from drivetrain_pipelines.errors import InputError
from hypothesis import given
from hypothesis import strategies as st

RULES = Rules()
NODES = [Node("a", 16, 4), Node("b", 16, 4)]


def asks(run: str, workers: int = 4, **other: object) -> Request:
    least = other.pop("min_workers", workers)
    base = Request(run, "ann", "default", 0, 0.0, workers, least, 1, 1)  # type: ignore[arg-type]
    return replace(base, **other)  # type: ignore[arg-type]


def holds(run: str, placement: Placement, end: float = math.inf, level: int = 0, **other: object) -> AllocatedGang:
    return AllocatedGang(asks(run, workers_of(placement), **other), placement, 0.0, level, end)


def decide(
    requests: list[Request], gangs: list[AllocatedGang] | None = None, rules: Rules = RULES, now: float = 0.0
) -> Decision:
    return schedule(now, NODES, gangs or [], requests, {}, rules)


def admitted(decision: Decision) -> list[str]:
    return [action.run for action in decision.actions if isinstance(action, Admit)]


def preempted(decision: Decision) -> list[str]:
    return [action.run for action in decision.actions if isinstance(action, Preempt)]


# Places ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "workers", "gpus", "ranks"),
    [
        ([(2, 0)], 2, 0, [2]),
        ([(1, 0), (1, 0)], 2, 0, [1, 1]),
        ([(2, 0), (8, 0)], 6, 0, [6]),
        ([(8, 1), (8, 4)], 5, 1, [4, 1]),
        ([(8, 4), (8, 4), (8, 2)], 6, 1, [4, 2]),
        ([(1, 0)], 2, 0, None),
        ([(8, 0)], 1, 1, None),
    ],
)
def test_a_gang_takes_few_nodes(
    nodes: list[tuple[float, float]], workers: int, gpus: int, ranks: list[int] | None
) -> None:
    free = FreeResources(Node(str(index), *node) for index, node in enumerate(nodes))
    placement = free.find_placement(asks("x", workers, gpus=gpus))
    assert (placement and [count for _, count in placement]) == ranks


def test_the_tightest_node_that_will_do() -> None:
    free = FreeResources([Node("big", 8, 8), Node("small", 8, 2)])
    assert free.find_placement(asks("x", 2)) == (("small", 2),)


def test_a_gang_is_as_large_as_possible() -> None:
    assert FreeResources(NODES).find_placement(asks("x", 100, min_workers=3)) == (("a", 4), ("b", 4))
    assert cluster_can_hold(NODES, asks("x", 100, min_workers=8))
    assert not cluster_can_hold(NODES, asks("x", 9))


# Order ----------------------------------------------------------------------------------------------------------


def test_priority_then_age_then_name() -> None:
    requests = [asks("late", since=2.0), asks("early", since=1.0), asks("urgent", since=3.0, priority=1)]
    assert admitted(decide(requests)) == ["urgent", "early"]


def test_fair_share_alternates_between_users() -> None:
    greedy = [asks(f"ann-{n}", 2, since=float(n)) for n in range(5)]
    modest = [asks(f"bob-{n}", 2, since=10.0 + n, user="bob") for n in range(5)]
    assert admitted(decide(greedy + modest)) == ["ann-0", "bob-0", "ann-1", "bob-1"]


def test_recent_usage_and_weights_count() -> None:
    requests = [asks("ann", 8), asks("bob", 8, user="bob", since=5.0)]
    assert admitted(schedule(9.0, NODES, [], requests, {"ann": 0.5}, RULES)) == ["bob"]
    rich = Rules(users={"ann": UserRules(weight=10.0), "bob": UserRules()})
    assert admitted(schedule(9.0, NODES, [], requests, {"ann": 0.5, "bob": 0.1}, rich)) == ["ann"]


def test_past_usage_decays() -> None:
    meter = UsageMeter(0.0)
    meter.advance(100.0, {"ann": 1.0}, 100.0)
    assert meter.usage["ann"] == pytest.approx(0.5)
    meter.advance(300.0, {}, 100.0)
    assert meter.usage["ann"] == pytest.approx(0.125)


def test_age_raises_the_priority_and_protects_but_does_not_preempt() -> None:
    now = 3 * RULES.aging_s
    old, young = asks("old", 8), asks("young", 8, since=now, priority=2)
    first = decide([old, young], now=now)
    assert admitted(first) == ["old"]
    (admit,) = first.actions
    assert isinstance(admit, Admit)
    running = AllocatedGang(old, admit.placement, now, admit.level)
    assert preempted(schedule(now, NODES, [running], [young], {}, RULES)) == []
    fresh = holds("fresh", (("a", 4), ("b", 4)))
    assert preempted(schedule(now, NODES, [fresh], [replace(old, run="old2")], {}, RULES)) == []


# Quotas ---------------------------------------------------------------------------------------------------------


def test_quotas_of_users_and_queues() -> None:
    rules = Rules(queues={"default": QueueRules(), "small": QueueRules(max_workers=2)}, others=UserRules(max_workers=4))
    requests = [
        asks("one", 3),
        asks("two", 3, since=1.0),
        asks("three", 2, since=2.0, user="bob", queue="small"),
        asks("four", 1, since=3.0, user="cy", queue="small"),
    ]
    decision = decide(requests, rules=rules)
    assert admitted(decision) == ["one", "three"]
    assert decision.waiting["two"] == "waiting for the quota of user ann: 3 of 4 workers are in use"
    assert decision.waiting["four"] == "waiting for the quota of queue small: 2 of 2 workers are in use"


def test_an_elastic_gang_stays_within_its_quota() -> None:
    (admit,) = decide([asks("x", 8, min_workers=1)], rules=Rules(others=UserRules(max_workers=3))).actions
    assert isinstance(admit, Admit)
    assert workers_of(admit.placement) == 3


# Backfill -------------------------------------------------------------------------------------------------------

BUSY = [holds("long", (("a", 4),), end=1000.0), holds("short", (("b", 2),), end=500.0)]


def test_the_first_gang_that_does_not_fit_gets_a_reservation() -> None:
    decision = decide([asks("big", 8)], BUSY)
    assert decision.actions == []
    assert decision.waiting == {"big": "next in the queue; starts within 1000 s"}


def test_backfill_admits_only_gangs_that_end_in_time() -> None:
    big = asks("big", 8)
    brief, endless = asks("brief", 2, since=1.0, expected_s=900.0), asks("endless", 2, since=1.0, expected_s=1100.0)
    assert admitted(decide([big, brief], BUSY)) == ["brief"]
    assert admitted(decide([big, endless], BUSY)) == []
    assert admitted(decide([big, asks("unknown", 2, since=1.0)], BUSY)) == []


def test_backfill_next_to_the_reserved_gang() -> None:
    six = asks("six", 6)
    assert admitted(decide([six, asks("endless", 2, since=1.0)], BUSY)) == ["endless"]
    assert admitted(decide([six, asks("more", 3, since=1.0)], BUSY)) == []


def test_resources_are_reserved_if_the_ends_are_unknown() -> None:
    busy = [holds("x", (("a", 4),)), holds("y", (("b", 3),))]
    decision = decide([asks("big", 8), asks("one", 1, since=1.0)], busy)
    assert decision.actions == []
    assert decision.waiting["big"] == "next in the queue; waiting for running jobs to end"


def test_a_gang_that_is_too_large_blocks_no_other() -> None:
    decision = decide([asks("huge", 9), asks("ok", 2, since=1.0)])
    assert admitted(decision) == ["ok"]
    assert "the cluster is too small" in decision.waiting["huge"]


# Preemption -----------------------------------------------------------------------------------------------------


def test_preemption_takes_the_lowest_and_no_more_than_needed() -> None:
    running = [holds("low", (("a", 4),), level=0), holds("mid", (("b", 4),), level=1)]
    decision = decide([asks("urgent", 4, priority=2)], running)
    assert decision.actions == [Preempt("low", "preempted by urgent with priority 2")]
    assert decision.waiting["urgent"] == "waiting for low to save and stop"


def test_no_gang_is_preempted_twice_or_without_need() -> None:
    leaving = replace(holds("low", (("a", 4),)), leaving=True)
    other = holds("other", (("b", 4),))
    assert decide([asks("urgent", 4, priority=2)], [leaving, other]).actions == []
    assert decide([asks("huge", 8, priority=2)], [leaving, holds("high", (("b", 4),), level=2)]).actions == []
    fixed = holds("fixed", (("a", 4), ("b", 4)), preemptible=False)
    assert decide([asks("urgent", 4, priority=2)], [fixed]).actions == []
    nearly_done = holds("nearly", (("a", 4), ("b", 4)), end=10.0)
    assert decide([asks("urgent", 4, priority=2)], [nearly_done]).actions == []
    assert decide([asks("urgent", 8, priority=2)], [other], Rules(preemption=False)).actions == []


def test_resources_of_leaving_gangs_stay_reserved() -> None:
    leaving = replace(holds("low", (("a", 4), ("b", 4))), leaving=True)
    urgent, small = asks("urgent", 8, priority=2), asks("small", 1, since=-9.0)
    assert decide([urgent, small], [leaving]).actions == []


def test_a_draining_node() -> None:
    nodes = [Node("a", 16, 4, draining=True), Node("b", 16, 4)]
    there = holds("there", (("a", 2), ("b", 1)), preemptible=False)
    decision = schedule(0.0, nodes, [there], [asks("new", 3), asks("big", 4, since=1.0)], {}, RULES)
    assert decision.actions == [Preempt("there", "node a is draining"), Admit("new", (("b", 3),), 0)]
    assert not cluster_can_hold(nodes, asks("eight", 8))
    leaving = replace(there, leaving=True)
    assert schedule(0.0, nodes, [leaving], [], {}, RULES).actions == []


def test_nodes_with_repeated_failures_are_quarantined() -> None:
    quarantine, rules = Quarantine(), Rules(strikes=2, quarantine_s=100.0)
    nodes = [Node("a", 4, 0), Node("b", 4, 0)]
    assert not quarantine.report_node_failure("a", 0.0, rules)
    assert not quarantine.report_node_failure("a", 150.0, rules), "the first one is forgotten"
    assert quarantine.report_node_failure("a", 160.0, rules)
    small, large = asks("small", 4, gpus=0), asks("large", 8, gpus=0)
    assert quarantine.usable(nodes, [small], 200.0) == nodes[1:]
    assert quarantine.usable(nodes, [small, large], 200.0) == nodes, "it would wait for an hour"
    assert quarantine.usable(nodes, [asks("huge", 9, gpus=0)], 200.0) == nodes[1:], "it would not help"
    assert (quarantine.quarantined_until("a", 200.0), quarantine.quarantined_until("a", 260.0)) == (260.0, None)
    assert quarantine.usable(nodes, [small], 260.0) == nodes


def test_ranks_are_found_on_their_nodes() -> None:
    assert [node_of(rank, (("a", 2), ("b", 1))) for rank in range(3)] == ["a", "a", "b"]
    with pytest.raises(IndexError):
        node_of(3, (("a", 2), ("b", 1)))


# Elasticity -----------------------------------------------------------------------------------------------------


def test_elastic_gangs_fit_the_free_resources_and_scale_up_later() -> None:
    elastic = asks("x", 8, min_workers=2)
    (admit,) = decide([elastic], [holds("y", (("a", 4),))]).actions
    assert isinstance(admit, Admit)
    assert workers_of(admit.placement) == 4
    small = AllocatedGang(elastic, (("b", 4),), 0.0, 0, expected_end=1000.0, steady=True)
    assert decide([], [small]).actions == [Preempt("x", "scaling up from 4 to 8 workers")]
    assert decide([], [replace(small, expected_end=100.0)]).actions == []
    assert decide([], [replace(small, expected_end=math.inf)]).actions == []
    assert decide([], [replace(small, steady=False)]).actions == [], "it has hardly begun"
    quota = Rules(others=UserRules(max_workers=4))
    assert decide([], [small], quota).actions == [], "it would only get as many as it has"
    assert decide([], [small], Rules(others=UserRules(max_workers=6))).actions == [
        Preempt("x", "scaling up from 4 to 6 workers")
    ]


# Whatever is asked ----------------------------------------------------------------------------------------------

REQUESTS = st.lists(
    st.builds(
        lambda user, priority, since, least, more, gpus, expected, elastic: Request(
            "", user, "default", priority, since, least + more, least if elastic else least + more, 1, gpus, expected
        ),
        st.sampled_from(["ann", "bob", "cy"]),
        st.integers(-1, 2),
        st.floats(0, 1e5),
        st.integers(1, 6),
        st.integers(0, 4),
        st.integers(0, 1),
        st.sampled_from([10.0, 1000.0, math.inf]),
        st.booleans(),
    ),
    max_size=14,
)


@given(REQUESTS, st.integers(1, 4), st.randoms(use_true_random=False))
def test_invariants_over_many_passes(requests: list[Request], nodes: int, random: object) -> None:
    """No resource is allocated twice, no gang is placed partially, and every gang that fits ends."""
    cluster = [Node(f"n{n}", 8, 4) for n in range(nodes)]
    waiting = {f"r{n}": replace(request, run=f"r{n}") for n, request in enumerate(requests)}
    running: dict[str, AllocatedGang] = {}
    now = 1e5
    for _ in range(200):
        decision = schedule(now, cluster, list(running.values()), list(waiting.values()), {}, RULES)
        for action in decision.actions:
            if isinstance(action, Admit):
                request = waiting.pop(action.run)
                assert request.min_workers <= workers_of(action.placement) <= request.workers
                assert len({node for node, _ in action.placement}) == len(action.placement)
                running[action.run] = AllocatedGang(
                    request, action.placement, now, action.level, now + request.expected_s
                )
            else:
                assert not running[action.run].leaving
                running[action.run] = replace(running[action.run], leaving=True)
        assert set(decision.waiting) == set(waiting)
        _check_room(cluster, running)
        now += 100.0
        for run, gang in list(running.items()):
            if gang.leaving:
                waiting[run] = running.pop(run).request
            elif random.random() < 0.3:  # type: ignore[attr-defined]
                del running[run]
    assert all(not cluster_can_hold(cluster, request) for request in waiting.values())


def _check_room(cluster: list[Node], running: dict[str, AllocatedGang]) -> None:
    free = FreeResources(cluster)
    for gang in running.values():
        free.allocate(gang.request, gang.placement)
    assert np.all(free.cpus >= 0)
    assert np.all(free.gpus >= 0)


@given(REQUESTS, st.lists(st.tuples(st.integers(1, 4), st.floats(1, 2000)), min_size=1, max_size=3))
def test_backfill_never_delays_the_reserved_gang(requests: list[Request], held: list[tuple[int, float]]) -> None:
    """If all expected run times are correct, backfill does not delay the first gang in the queue."""
    cluster = [Node(f"n{n}", 8, 4) for n in range(len(held))]
    running = [holds(f"h{n}", ((f"n{n}", size),), end=end) for n, (size, end) in enumerate(held)]
    first = asks("first", 4 * len(held), priority=9)
    others = [replace(request, run=f"r{n}", gpus=1) for n, request in enumerate(requests)]
    rules = Rules(preemption=False)
    decision = schedule(0.0, cluster, running, [first, *others], {}, rules)
    if "first" in admitted(decision):
        return
    due = max(end for _, end in held)
    by_run = {request.run: request for request in others}
    for action in decision.actions:
        assert isinstance(action, Admit)
        request = by_run[action.run]
        assert request.expected_s * request.workers / workers_of(action.placement) <= due


# Rules ----------------------------------------------------------------------------------------------------------


def test_rules_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "scheduling.yaml"
    assert load_rules(path) == Rules()
    path.write_text("queues: {default: {}, urgent: {priority: 10}}\nusers: {ann: {max_workers: 8}}\n")
    assert load_rules(path).queues["urgent"].priority == 10
    for wrong in ("queues: {urgent: {prio: 1}}", "users: {ann: {weight: 0}}", "a: [", "aging_s: soon"):
        path.write_text(wrong)
        with pytest.raises(InputError, match=r"scheduling\.yaml"):
            load_rules(path)
    lasting = ReloadingRules(path)
    path.write_text("aging_s: 5")
    assert lasting().aging_s == 5
    path.write_text("aging_s: soon")
    assert lasting().aging_s == 5, "a mistake changes nothing"
