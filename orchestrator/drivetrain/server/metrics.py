"""``/metrics`` for Prometheus: queue, admissions, recoveries, and the time of runs by class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from drivetrain_workers.protocol.reasons import Reason
from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from drivetrain.runs.counters import ADMISSIONS, ENDS, RECOVERIES
from drivetrain.runs.states import TRANSITIONS
from drivetrain.runs.store import RunRecord
from drivetrain.server.dependencies import Parts, Viewer

router = APIRouter()

# Counters that are still 0 are reported, too: a query for them must not be empty, and must see the first rise.
_NO_RUNS = {(kind.__name__.lower(),): 0 for kind in TRANSITIONS}
_NO_NODES = {(state,): 0 for state in ("usable", "draining", "quarantined")}
_NEVER = {str(reason): 0 for reason in Reason}
_OF_A_VIEW = {
    "step": "optimizer steps done",
    "steps": "optimizer steps to do",
    "step_s": "seconds a step, of the newest ones",
    "tokens_per_s": "tokens a second, of the newest steps",
    "data_wait_share": "share of the newest steps spent waiting for data",
    "loss": "of the newest step",
    "restarts": "generations that replaced a failed one",
}
_PROMETHEUS_NAMES = {
    "step_s": "step_seconds",
    "tokens_per_s": "tokens_per_second",
    "data_wait_share": "data_wait_ratio",
}


@router.get("/metrics")
def metrics(request: Request, _: Viewer) -> Response:
    """Return figures of the cluster and of the runs that have not ended, in Prometheus' text format."""
    return Response(generate_latest(request.app.state.metrics), media_type=CONTENT_TYPE_LATEST)


def registry(parts: Parts) -> CollectorRegistry:
    """Return the registry of the figures of a server."""
    made = CollectorRegistry()
    made.register(_Figures(parts))
    return made


class _Figures(Collector):
    """Collects every figure when it is requested."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def describe(self) -> list[Metric]:
        """Return nothing: registration must not query the cluster."""
        return []

    def collect(self) -> Iterator[Metric]:
        runs = self._parts.store.unended()
        yield from self._of_the_cluster(runs)
        yield from self._of_all_times()
        yield from self._of_runs(runs)

    def _of_the_cluster(self, runs: list[RunRecord]) -> Iterator[Metric]:
        found = self._parts.session.cluster()
        phases = Counter((record.state.phase,) for record in runs)
        yield _gauge("runs", "runs that have not ended", ["phase"], _NO_RUNS | phases)
        waiting = Counter((entry.request.queue, entry.waits_for) for entry in found.queue)
        yield _gauge("queue_length", "queued runs", ["queue", "waits_for"], waiting)
        states = Counter((node.state,) for node in found.nodes)
        yield _gauge("nodes", "nodes of the cluster", ["state"], _NO_NODES | states)
        for device in ("cpus", "gpus"):
            both = {
                ("there",): sum(getattr(node, device) for node in found.nodes),
                ("used",): sum(getattr(node, f"{device}_used") for node in found.nodes),
            }
            yield _gauge(device, f"{device} of the cluster", ["state"], both)

    def _of_all_times(self) -> Iterator[Metric]:
        counters = self._parts.store.counters
        admissions = counters(ADMISSIONS).get("", 0)
        yield CounterMetricFamily("drivetrain_admissions", "allocations", admissions)
        yield _counter("recoveries", "recoveries from failures", ["reason"], _NEVER | counters(RECOVERIES))
        yield _counter("runs_ended", "ended runs by reason", ["reason"], _NEVER | counters(ENDS))

    def _of_runs(self, runs: list[RunRecord]) -> Iterator[Metric]:
        views = [(_labels(record), self._parts.session.view(record.id)) for record in runs]
        for key, text in _OF_A_VIEW.items():
            values = {labels: value for labels, view in views if (value := getattr(view, key)) is not None}
            yield _gauge(f"run_{_PROMETHEUS_NAMES.get(key, key)}", text, ["run", "user"], values)
        shares, seconds = {}, {}
        for record in runs:
            statement = self._parts.accounts.of(record.id)
            shares[_labels(record)] = statement.goodput.share
            for name, value in statement.goodput.seconds.items():
                seconds[(*_labels(record), name)] = value
        yield _gauge(
            "run_goodput_ratio",
            "share of the time spent in steps that count, since the first allocation",
            ["run", "user"],
            shares,
        )
        yield _gauge("run_time_seconds", "time by class", ["run", "user", "class"], seconds)


def _labels(record: RunRecord) -> tuple[str, str]:
    return record.id, record.user


def _gauge(name: str, text: str, labels: list[str], values: Mapping[Any, float]) -> Metric:
    metric = GaugeMetricFamily(f"drivetrain_{name}", text, labels=labels)
    for found, value in values.items():
        metric.add_metric(found, value)
    return metric


def _counter(name: str, text: str, labels: list[str], values: Mapping[str, int]) -> Metric:
    metric = CounterMetricFamily(f"drivetrain_{name}", text, labels=labels)
    for found, value in values.items():
        metric.add_metric([found], value)
    return metric
