"""Traces of jobs for the simulation: CSV files with one job per line."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyarrow as pa
from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.storage.json_files import JsonObject
from pyarrow import csv

from drivetrain.scheduling.model import Node
from drivetrain.scheduling.rules import DEFAULT_QUEUE

_REQUIRED = ("job", "submitted_s", "duration_s", "gpus")
_OPTIONAL: JsonObject = {
    "user": "",
    "queue": DEFAULT_QUEUE,
    "priority": 0,
    "min_gpus": None,  # gpus
    "expected_s": None,  # duration_s
}


@dataclass(frozen=True)
class TraceJob:
    """A job of a trace.

    Attributes:
        submitted_s: since the start of the trace.
        duration_s: with all its GPUs.
        min_gpus: minimum number of GPUs.
        expected_s: duration as estimated by the user; infinite if unknown.
    """

    job: str
    submitted_s: float
    duration_s: float
    gpus: int
    user: str
    queue: str
    priority: int
    min_gpus: int
    expected_s: float


def read_trace(path: str) -> list[TraceJob]:
    """Return the jobs of a CSV file, in the order of submission.

    Raises:
        InputError: the file, a column or a line is not valid.
    """
    columns = f"the columns {', '.join(_REQUIRED)}, and optionally {', '.join(_OPTIONAL)}"
    try:
        table = csv.read_csv(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError("--trace", repr(path), f"a CSV file with {columns}", str(error).splitlines()[0]) from error
    names = set(table.column_names)
    if missing := [name for name in _REQUIRED if name not in names]:
        raise InputError("--trace", f"no column {missing[0]} in {path}", columns)
    if unknown := sorted(names - {*_REQUIRED, *_OPTIONAL}):
        raise InputError("--trace", f"the column {unknown[0]} in {path}", columns)
    jobs = [_job(path, line, row) for line, row in enumerate(table.to_pylist(), start=2)]
    return sorted(jobs, key=lambda job: (job.submitted_s, job.job))


def _job(path: str, line: int, row: JsonObject) -> TraceJob:
    values = {**_OPTIONAL, **{name: value for name, value in row.items() if value is not None}}
    try:
        gpus, duration_s, submitted_s = int(values["gpus"]), float(values["duration_s"]), float(values["submitted_s"])
        min_gpus = gpus if values["min_gpus"] is None else int(values["min_gpus"])
        expected_s = duration_s if values["expected_s"] is None else float(values["expected_s"])
        priority = int(values["priority"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}:{line}", repr(row), "numbers in the numeric columns") from error
    possible = 1 <= min_gpus <= gpus and duration_s > 0 and submitted_s >= 0 and expected_s > 0
    if not (possible and math.isfinite(duration_s) and math.isfinite(submitted_s)):
        allowed = "1 <= min_gpus <= gpus, 0 < duration_s, 0 < expected_s, 0 <= submitted_s"
        raise InputError(f"{path}:{line}", repr(row), allowed)
    user, queue = str(values["user"]), str(values["queue"])
    return TraceJob(str(values["job"]), submitted_s, duration_s, gpus, user, queue, priority, min_gpus, expected_s)


def parse_cluster(text: str) -> list[Node]:
    """Parse a cluster such as ``812x8,1x4``: 812 nodes with 8 GPUs and one with 4.

    Raises:
        InputError: the text has another form.
    """
    nodes: list[Node] = []
    for part in text.split(","):
        count, _, gpus = part.strip().partition("x")
        if not (count.isdecimal() and gpus.isdecimal() and int(count) and int(gpus)):
            raise InputError("--cluster", repr(text), "NODESxGPUS, separated by commas, such as 16x8,4x4")
        nodes += [Node(f"node-{len(nodes) + i:05}", 0.0, int(gpus)) for i in range(int(count))]
    return nodes
