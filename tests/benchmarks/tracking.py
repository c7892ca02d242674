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

_RUNS, _CYCLES, _WARM_UP, _STEPS_A_MOOD, _CHANGE = 2, 8, 20, 36, 4
_MOODS = ("nobody", "good", "slow", "broken")
_CYCLE = len(_MOODS) * _STEPS_A_MOOD
_STEPS = _WARM_UP + _CYCLES * _CYCLE
_NOBODY = "http://127.0.0.1:9"  # the port of `discard`
_JOB = ("training.global_batch_size=8", "resources.workers=1", "data.eval_source=null", "data.eval_fraction=0.005",
        f"training.eval_every={_STEPS}", f"checkpoint.every={_STEPS}")  # fmt: skip


def main() -> None:
    """Change the server's condition during runs, and compare within each cycle."""
    cycles: list[dict[str, list[float]]] = []
    with tempfile.TemporaryDirectory() as folder, mlflow_server(Path(folder)) as server:
        home = Path(folder) / "home"
        _start(home, _NOBODY, 2).finish()  # prepares the dataset
        for number in range(_RUNS):
            orders = [random.Random(number * _CYCLES + cycle).sample(_MOODS, len(_MOODS)) for cycle in range(_CYCLES)]
            times = _step_times(_with_moods(_start(home, server.uri, _STEPS), server, [*chain.from_iterable(orders)]))
            cycles += [_by_mood(order, times[_WARM_UP + cycle * _CYCLE :]) for cycle, order in enumerate(orders)]
            print(f"run {number + 1} of {_RUNS}: {median(times):.4f} s a step", flush=True)
    rows, ratios = [], {}
    for mood in _MOODS:
        for title, statistic in (("mean", fmean), ("median", median)):
            every = [statistic(cycle[mood]) / statistic(cycle["nobody"]) for cycle in cycles]
            ratios[f"{mood} {title}"] = every
            rows.append([f"{mood}, {title}", f"{fmean(statistic(c[mood]) for c in cycles):.4f}", _interval(every)])
    columns = ["the server is", "s a step", f"ratio to nobody, mean of {len(cycles)} cycles (95 %)"]
    report("tracking", columns, rows, {"ratios": ratios})


def _start(home: Path, tracker: str, steps: int) -> RunningJob:
    os.environ["MLFLOW_TRACKING_URI"] = tracker
    return run_job(Path("language-model"), home, *_JOB, f"training.steps={steps}")


def _with_moods(job: RunningJob, server: MlflowServer, order: list[str]) -> Result:
    """Change the server's condition at its steps, and reset it after the run; all conditions must have occurred."""
    for place, mood in enumerate(order):
        job.wait_for_step(_WARM_UP + place * _STEPS_A_MOOD)
        _set(server, mood)
    job.wait_for_step(_STEPS)
    _set(server, "good")
    result = job.finish()
    done = command_line(result.home, "sync", result.run_id)
    assert done.returncode == 0, done.stderr
    facts = RunStore(f"sqlite:///{result.home / 'drivetrain.db'}").get(result.run_id).facts.to_json()
    assert sorted(Result(0, result.run_id, facts, {}, result.home, "").series("loss")) == [*range(1, _STEPS + 1)]
    return result


def _set(server: MlflowServer, mood: str) -> None:
    server.mode = "away" if mood == "nobody" else mood


def _step_times(result: Result) -> list[float]:
    """Return the seconds from step to step, by the rank's own clock."""
    assert result.code == 0, result.errors
    records = ledger.read(RunFolder(result.home / "runs" / result.run_id).ledger)
    return [later.time - earlier.time for earlier, later in pairwise(records)]


def _by_mood(order: list[str], times: list[float]) -> dict[str, list[float]]:
    """Group the times of one cycle; steps close to a change are excluded."""
    begins = {mood: place * _STEPS_A_MOOD for place, mood in enumerate(order)}
    return {mood: times[begin + _CHANGE : begin + _STEPS_A_MOOD] for mood, begin in begins.items()}


def _interval(ratios: list[float]) -> str:
    if len(set(ratios)) == 1:
        return "1"
    found = bootstrap((np.array(ratios),), np.mean, random_state=np.random.default_rng(0)).confidence_interval
    return f"{fmean(ratios):.4f} ({found.low:.4f} to {found.high:.4f})"


if __name__ == "__main__":
    main()
