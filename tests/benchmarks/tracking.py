"""Time of a step with a tracking server that works, is slow or fails, compared with the time without a server.

Every run goes through all four conditions many times, in a new random order in each cycle. Machines drift more than
the expected effect, so a step is only compared with steps of the same minute.
One rank of two cores: the other core is for the control plane and the MLflow server, which elsewhere have their own.
"""

from __future__ import annotations

import os
import random
import tempfile
from itertools import chain, pairwise
from pathlib import Path
from statistics import fmean, median

import numpy as np
from drivetrain.runs.store import RunStore
from drivetrain_workers.records import ledger
from drivetrain_workers.records.run_folder import RunFolder
from scipy.stats import bootstrap

from tests.benchmarks.report import report
from tests.cluster.harness import Result, RunningJob, command_line, run_job
from tests.mlflow_server import MlflowServer, mlflow_server

_RUNS, _CYCLES, _WARM_UP, _STEPS_PER_CONDITION, _CHANGE = 2, 8, 20, 36, 4
_CONDITIONS = ("none", "good", "slow", "broken")
_CYCLE = len(_CONDITIONS) * _STEPS_PER_CONDITION
_STEPS = _WARM_UP + _CYCLES * _CYCLE
_NO_SERVER = "http://127.0.0.1:9"  # the port of `discard`
_JOB = ("training.global_batch_size=8", "resources.workers=1", "data.eval_source=null", "data.eval_fraction=0.005",
        f"training.eval_every={_STEPS}", f"checkpoint.every={_STEPS}")  # fmt: skip


def main() -> None:
    """Change the server's condition during runs, and compare within each cycle."""
    cycles: list[dict[str, list[float]]] = []
    with tempfile.TemporaryDirectory() as folder, mlflow_server(Path(folder)) as server:
        home = Path(folder) / "home"
        _start(home, _NO_SERVER, 2).finish()  # prepares the dataset
        for number in range(_RUNS):
            orders = [
                random.Random(number * _CYCLES + cycle).sample(_CONDITIONS, len(_CONDITIONS))
                for cycle in range(_CYCLES)
            ]
            times = _step_times(
                _with_conditions(_start(home, server.uri, _STEPS), server, [*chain.from_iterable(orders)])
            )
            cycles += [_by_condition(order, times[_WARM_UP + cycle * _CYCLE :]) for cycle, order in enumerate(orders)]
            print(f"run {number + 1} of {_RUNS}: {median(times):.4f} s a step", flush=True)
    rows, ratios = [], {}
    for condition in _CONDITIONS:
        for title, statistic in (("mean", fmean), ("median", median)):
            every = [statistic(cycle[condition]) / statistic(cycle["none"]) for cycle in cycles]
            ratios[f"{condition} {title}"] = every
            rows.append(
                [f"{condition}, {title}", f"{fmean(statistic(c[condition]) for c in cycles):.4f}", _interval(every)]
            )
    columns = ["the server is", "s a step", f"ratio to none, mean of {len(cycles)} cycles (95 %)"]
    report("tracking", columns, rows, {"ratios": ratios})


def _start(home: Path, tracker: str, steps: int) -> RunningJob:
    os.environ["MLFLOW_TRACKING_URI"] = tracker
    return run_job(Path("language-model"), home, *_JOB, f"training.steps={steps}")


def _with_conditions(job: RunningJob, server: MlflowServer, order: list[str]) -> Result:
    """Change the server's condition at its steps, and reset it after the run; all conditions must have occurred."""
    for place, condition in enumerate(order):
        job.wait_for_step(_WARM_UP + place * _STEPS_PER_CONDITION)
        _set(server, condition)
    job.wait_for_step(_STEPS)
    _set(server, "good")
    result = job.finish()
    done = command_line(result.home, "sync", result.run_id)
    assert done.returncode == 0, done.stderr
    facts = RunStore(f"sqlite:///{result.home / 'drivetrain.db'}").get(result.run_id).facts.to_json()
    assert sorted(Result(0, result.run_id, facts, {}, result.home, "").series("loss")) == [*range(1, _STEPS + 1)]
    return result


def _set(server: MlflowServer, condition: str) -> None:
    server.mode = "away" if condition == "none" else condition


def _step_times(result: Result) -> list[float]:
    """Return the seconds from step to step, by the rank's own clock."""
    assert result.code == 0, result.errors
    records = ledger.read(RunFolder(result.home / "runs" / result.run_id).ledger)
    return [later.time - earlier.time for earlier, later in pairwise(records)]


def _by_condition(order: list[str], times: list[float]) -> dict[str, list[float]]:
    """Group the times of one cycle; steps close to a change are excluded."""
    begins = {condition: place * _STEPS_PER_CONDITION for place, condition in enumerate(order)}
    return {condition: times[begin + _CHANGE : begin + _STEPS_PER_CONDITION] for condition, begin in begins.items()}


def _interval(ratios: list[float]) -> str:
    if len(set(ratios)) == 1:
        return "1"
    found = bootstrap((np.array(ratios),), np.mean, random_state=np.random.default_rng(0)).confidence_interval
    return f"{fmean(ratios):.4f} ({found.low:.4f} to {found.high:.4f})"


if __name__ == "__main__":
    main()
