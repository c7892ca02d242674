"""The scheduler on a virtual clock."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from drivetrain.cli.simulate import simulate_trace
from drivetrain.scheduling.rules import Rules
from drivetrain.scheduling.simulation import START_S, STOP_S, coordinator_policy, first_in_first_out, simulate
from drivetrain.scheduling.trace import TraceJob, parse_cluster, read_trace
from drivetrain_pipelines.errors import InputError

from tests.benchmarks.scheduling import write_trace

NODES = parse_cluster("1x8")
RULES = Rules()


def job(
    name: str, submitted: float, duration: float, gpus: int, priority: int = 0, least: int | None = None
) -> TraceJob:
    return TraceJob(name, submitted, duration, gpus, "ann", "default", priority, least or gpus, duration)


def test_one_after_the_other() -> None:
    result = simulate([job("a", 0, 100, 8), job("b", 10, 100, 8)], NODES, coordinator_policy(RULES), RULES)
    assert result.completion_s.tolist() == [100, 190]
    assert result.waited_s.tolist() == [0, 90]
    assert result.utilisation == 1.0


def test_backfill_where_first_in_first_out_waits() -> None:
    jobs = [job("a", 0, 100, 6), job("b", 1, 100, 8), job("c", 2, 50, 2)]
    strict = simulate(jobs, NODES, first_in_first_out, RULES)
    ours = simulate(jobs, NODES, coordinator_policy(RULES), RULES)
    assert strict.completion_s.tolist() == [100, 199, 248]
    assert ours.completion_s.tolist() == [100, 199, 50]


def test_preemption_costs_a_stop_and_a_start_and_no_work() -> None:
    result = simulate(
        [job("low", 0, 1000, 8), job("high", 100, 50, 8, priority=1)], NODES, coordinator_policy(RULES), RULES
    )
    assert result.preemptions == 1
    assert result.completion_s.tolist() == [1000 + 50 + START_S, STOP_S + 50]


def test_elastic_jobs_use_the_free_resources() -> None:
    jobs = [job("a", 0, 1000, 4), job("b", 0, 100, 8, least=2)]
    assert simulate(jobs, NODES, coordinator_policy(RULES), RULES).completion_s.tolist() == [1000, 200]


def test_jobs_that_never_fit_are_counted() -> None:
    result = simulate([job("a", 0, 10, 9), job("b", 0, 10, 1)], NODES, coordinator_policy(RULES), RULES)
    assert result.refused == 1
    assert result.completion_s.tolist() == [10]


def test_work_is_conserved(tmp_path: Path) -> None:
    """With any preemptions and scaling, the busy time of the GPUs equals the work of the jobs plus the restarts."""
    trace = tmp_path / "trace.csv"
    write_trace(trace, 400, 80, 0.9)
    jobs, nodes = read_trace(str(trace)), parse_cluster("10x8")
    result = simulate(jobs, nodes, coordinator_policy(RULES), RULES)
    assert result.preemptions > 0
    times, parts = result.busy[:, 0], result.busy[:, 1]
    spent = float((np.diff(times) * parts[:-1]).sum() * 80)
    work = sum(one.gpus * one.duration_s for one in jobs)
    assert work <= spent * (1 + 1e-9)
    assert spent - work <= result.preemptions * 80 * START_S


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, picture = tmp_path / "trace.csv", tmp_path / "picture.png"
    write_trace(trace, 50, 16, 0.8)
    simulate_trace(str(trace), "2x8", None, str(picture), as_json=True)
    figures = json.loads(capsys.readouterr().out)
    assert [figure["jobs"] for figure in figures.values()] == [50, 50, 50]
    assert picture.read_bytes().startswith(b"\x89PNG")
    simulate_trace(str(trace), "2x8", None, None, as_json=False)
    assert "SJF (oracle)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("job,submitted_s,gpus\na,0,1\n", "no column duration_s"),
        ("job,submitted_s,duration_s,gpus,color\na,0,1,1,red\n", "the column color"),
        ("job,submitted_s,duration_s,gpus\na,0,soon,1\n", "trace.csv:2"),
        ("job,submitted_s,duration_s,gpus\na,0,1,1\nb,0,1,0\n", "trace.csv:3"),
        ("", "trace.csv"),
    ],
)
def test_wrong_traces_are_reported(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=expected):
        read_trace(str(path))


@pytest.mark.parametrize("text", ["", "8", "0x8", "8x", "ax8", "8x8;2x2"])
def test_wrong_clusters_are_named(text: str) -> None:
    with pytest.raises(InputError, match="--cluster"):
        parse_cluster(text)
