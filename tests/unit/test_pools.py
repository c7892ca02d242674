"""Nodes that an autoscaler can add: the requests for them, and the admission of gangs that need them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from drivetrain.coordinator.gang_request import check_request
from drivetrain.coordinator.scheduler import Scheduler, SchedulerHandle
from drivetrain.scheduling.model import Node, Request
from drivetrain.scheduling.rules import Pool, Rules, UserRules
from drivetrain_pipelines.errors import InputError
from hypothesis import given
from hypothesis import strategies as st

RULES = Rules(pools={"gpu": Pool(max=2, cpus=8, gpus=4)}, users={"bob": UserRules(max_workers=1)})
HEAD = Node("head", 0, 0)


class _NoUsage:
    def usage(self) -> tuple[dict[str, float], float]:
        return {}, 0.0

    def save_usage(self, shares: Mapping[str, float], now: float) -> None:
        pass


class Cluster:
    """A scheduler, and its requests to the autoscaler."""

    def __init__(self, rules: Rules = RULES) -> None:
        self.nodes = [HEAD]
        self.asked: list[list[tuple[str, int]]] = []
        provision = self._note
        self.scheduler = Scheduler(lambda: rules, lambda: self.nodes, _NoUsage(), lambda: 0.0, provision)

    def _note(self, gangs: list[Request]) -> None:
        self.asked.append(sorted((gang.run, gang.workers) for gang in gangs))

    def submit(self, run: str, workers: int, user: str = "ann") -> SchedulerHandle:
        handle = self.scheduler.handle_of(request(run, workers, user))
        handle.connect(lambda _: None, lambda _: None)
        handle.request_allocation(None, 0.0)
        return handle


def request(run: str, workers: int, user: str = "ann") -> Request:
    return Request(run, user, "default", 0, 0.0, workers, workers, cpus=2, gpus=1)


def test_waiting_and_running_gangs_request_nodes() -> None:
    cluster = Cluster()
    first, _ = cluster.submit("a", 6), cluster.submit("b", 2)
    cluster.scheduler.run_pass()
    assert cluster.asked[-1] == [("a", 6), ("b", 2)]
    cluster.nodes = [HEAD, Node("n1", 8, 4), Node("n2", 8, 4)]
    cluster.scheduler.run_pass()
    cluster.scheduler.run_pass()
    assert cluster.asked[-1] == [("a", 6), ("b", 2)]
    first.release()
    cluster.scheduler.run_pass()
    assert cluster.asked[-1] == [("b", 2)]


def test_a_gang_beyond_its_quota_requests_no_nodes() -> None:
    cluster = Cluster()
    cluster.submit("a", 2, "bob")
    cluster.scheduler.run_pass()
    assert cluster.asked == [[]]


def test_without_pools_there_are_no_requests() -> None:
    cluster = Cluster(Rules())
    cluster.submit("a", 2)
    cluster.scheduler.run_pass()
    assert cluster.asked == []


def test_possible_nodes_are_the_missing_nodes() -> None:
    assert [node.id for node in RULES.possible_nodes([HEAD])] == ["gpu-0", "gpu-1"]
    assert [node.id for node in RULES.possible_nodes([HEAD, Node("n1", 8, 4)])] == ["gpu-0"]
    assert RULES.possible_nodes([Node(name, 8, 4) for name in "abc"]) == []
    twins = Rules(pools={name: Pool(max=2, cpus=8, gpus=4) for name in ("gpu", "spot")})
    assert [node.id for node in twins.possible_nodes([Node(name, 8, 4) for name in "abc"])] == ["spot-0"]


def test_a_gang_is_let_in_if_the_pools_could_hold_it() -> None:
    nodes = [HEAD, *RULES.possible_nodes([HEAD])]
    check_request(request("a", 8), nodes, RULES)
    with pytest.raises(InputError, match="8 GPUs"):
        check_request(request("a", 9), nodes, RULES)


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 4)), max_size=4),
    st.integers(1, 12),
    st.integers(1, 9),
    st.integers(0, 2),
)
def test_the_advice_for_a_gang_that_does_not_fit_fits(
    sizes: list[tuple[int, int]], workers: int, cpus: int, gpus: int
) -> None:
    """Fewer workers do not help if there is no GPU."""
    nodes = [Node(f"n{number}", cpus, gpus) for number, (cpus, gpus) in enumerate(sizes)]
    asked = replace(request("a", workers), workers=workers, min_workers=workers, cpus=float(cpus), gpus=float(gpus))
    try:
        check_request(asked, nodes, Rules())
    except InputError as error:
        advice = dict(pair.split("=") for pair in error.fix.removesuffix(".").split() if "=" in pair)
        changed = {key.removeprefix("resources."): float(value) for key, value in advice.items()}
        names = {"workers": "workers", "cpus_per_worker": "cpus", "gpus_per_worker": "gpus"}
        smaller = replace(asked, **{names[key]: value for key, value in changed.items()})
        smaller = replace(smaller, workers=int(smaller.workers), min_workers=int(smaller.workers))
        if changed:
            check_request(smaller, nodes, Rules())
            assert all(value < getattr(asked, names[key]) for key, value in changed.items())
        else:
            assert not any(cpus for cpus, _ in sizes)
