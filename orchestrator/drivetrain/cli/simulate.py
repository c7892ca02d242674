"""`drivetrain simulate`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from drivetrain_pipelines.errors import InputError
from rich.table import Table

from drivetrain.cli.errors import errors
from drivetrain.cli.tables import show
from drivetrain.scheduling.plot import draw
from drivetrain.scheduling.rules import Rules, load_rules
from drivetrain.scheduling.simulation import (
    Result,
    coordinator_policy,
    first_in_first_out,
    shortest_first,
    simulate,
)
from drivetrain.scheduling.trace import parse_cluster, read_trace


def simulate_trace(trace: str, cluster: str, rules_file: str | None, picture: str | None, as_json: bool) -> None:
    """Simulate the scheduler and two baselines on a trace, and print their figures."""
    with errors():
        if rules_file and not Path(rules_file).is_file():
            raise InputError("--rules", repr(rules_file), "a YAML file with scheduling rules")
        rules = load_rules(Path(rules_file)) if rules_file else Rules()
        jobs, nodes = read_trace(trace), parse_cluster(cluster)
        policies = {
            "Drivetrain": coordinator_policy(rules),
            "FIFO": first_in_first_out,
            "SJF (oracle)": shortest_first(jobs),
        }
        results = {}
        for name, policy in policies.items():
            print(f"simulating {len(jobs):,} jobs: {name}", file=sys.stderr)
            results[name] = simulate(jobs, nodes, policy, rules)
        figures = {name: _figures(result) for name, result in results.items()}
        if picture:
            draw(results, Path(picture))
        if as_json:
            print(json.dumps(figures))
        else:
            _print(figures)


def _figures(result: Result) -> dict[str, float]:
    done = result.completion_s
    return {
        "jobs": len(done),
        "refused": result.refused,
        "completion_mean_s": float(done.mean()) if len(done) else 0.0,
        "completion_p95_s": float(np.quantile(done, 0.95)) if len(done) else 0.0,
        "waited_mean_s": float(result.waited_s.mean()) if len(done) else 0.0,
        "utilisation": result.utilisation,
        "preemptions": result.preemptions,
    }


def _print(figures: dict[str, dict[str, float]]) -> None:
    table = Table("", "completion", "p95", "waited", "utilisation", "preemptions", "refused", box=None)
    for name, figure in figures.items():
        hours = [f"{figure[key] / 3600:.2f} h" for key in ("completion_mean_s", "completion_p95_s", "waited_mean_s")]
        rest = (f"{figure['utilisation']:.1%}", f"{figure['preemptions']:.0f}", f"{figure['refused']:.0f}")
        table.add_row(name, *hours, *rest)
    show(table)
