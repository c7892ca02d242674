"""The scheduling request of a run."""

from __future__ import annotations

import math
from dataclasses import replace

from drivetrain_pipelines.errors import InputError

from drivetrain.job.spec import JobSpec
from drivetrain.runs.states import Allocated, Queued, State
from drivetrain.runs.store import RunRecord
from drivetrain.scheduling.model import Node, Request
from drivetrain.scheduling.policy import cluster_can_hold
from drivetrain.scheduling.rules import Rules


def waiting_since(created: float, history: list[tuple[float, str, State]]) -> float:
    """Return the start of a single wait with the total waiting time of a run.

    Time with an allocation does not count as waiting; a resume by a user restarts the wait.

    Args:
        created: submission time of the run.
        history: its transitions, as returned by `RunStore.history`.
    """
    since, allocated_from = created, None
    for at, _, state in history:
        if isinstance(state, Allocated):
            allocated_from = at if allocated_from is None else allocated_from
        elif isinstance(state, Queued):
            since, allocated_from = at, None
        elif allocated_from is not None:
            since, allocated_from = since + at - allocated_from, None
    return since


def gang_request(record: RunRecord, since: float, spec: JobSpec, rules: Rules) -> Request:
    """Return the request for the gang of a run. A queue that is no longer in the rules has priority 0."""
    queue = rules.queues.get(spec.scheduling.queue)
    hours = spec.scheduling.expected_hours
    return Request(
        run=record.id,
        user=record.user,
        queue=spec.scheduling.queue,
        priority=spec.scheduling.priority + (queue.priority if queue else 0),
        since=since,
        workers=spec.resources.max_workers,
        min_workers=spec.resources.min_workers,
        cpus=spec.resources.cpus_per_worker,
        gpus=record.facts.gpus_per_worker or 0,
        expected_s=math.inf if hours is None else hours * 3600,
        preemptible=spec.scheduling.preemptible,
    )


def check_request(request: Request, nodes: list[Node], rules: Rules) -> None:
    """Check that a gang fits on the empty cluster and within the quotas of its queue and user.

    Args:
        nodes: of the cluster, including nodes that could be added.

    Raises:
        InputError: it does not fit.
    """
    if request.queue not in rules.queues:
        raise InputError("scheduling.queue", repr(request.queue), ", ".join(sorted(rules.queues)))
    for whose, limit in (
        (f"queue {request.queue}", rules.queues[request.queue].max_workers),
        (f"user {request.user}", rules.user(request.user).max_workers),
    ):
        if limit is not None and request.min_workers > limit:
            raise InputError(
                "resources.workers", f"{request.min_workers} workers", f"at most {limit}, the limit of {whose}"
            )
    if not cluster_can_hold(nodes, request):
        have = f"{sum(node.cpus for node in nodes):g} CPUs and {sum(node.gpus for node in nodes):g} GPUs"
        raise InputError(
            "resources.workers",
            f"{request.min_workers} workers of {request.cpus:g} CPUs and {request.gpus:g} GPUs",
            f"workers that fit on {len(nodes)} nodes with {have}",
            _fitting_settings(nodes, request),
        )


def _fitting_settings(nodes: list[Node], request: Request) -> str:
    """Return the settings of a gang that fits, which keeps as much of the given one as possible."""
    for gpus in dict.fromkeys((request.gpus, 0.0)):
        for cpus in dict.fromkeys((request.cpus, 1.0)):
            for workers in range(request.min_workers, 0, -1):
                smaller = replace(request, workers=workers, min_workers=workers, cpus=cpus, gpus=gpus)
                if cluster_can_hold(nodes, smaller):
                    changed = {"workers": (workers, request.min_workers), "cpus_per_worker": (cpus, request.cpus)}
                    changed |= {"gpus_per_worker": (gpus, request.gpus)}
                    options = (f"--set resources.{key}={new:g}" for key, (new, old) in changed.items() if new != old)
                    return f"Try {' '.join(options)}."
    return "No node is usable; see `drivetrain nodes`."
