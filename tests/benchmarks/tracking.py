"""Time of a step while the tracking server is well, slow, broken or killed, beside runs that have no server at all.

Each round is a run at whose tracking address nobody listens, and a run whose server changes its mood every few steps.
One rank of two cores: the other core is for the control plane and the MLflow server, which elsewhere have their own.
"""

from __future__ import annotations

import os
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import median

from drivetrain.runs.store import RunStore
from drivetrain_workers.checkpoints import ledger
from drivetrain_workers.run_folder import RunFolder

from tests.benchmarks.report import report
from tests.cluster.harness import Result, RunningJob, command_line, run_job
from tests.mlflow_server import MlflowServer, mlflow_server

_ROUNDS, _WARM_UP, _STEPS_A_MOOD = 6, 8, 16
_MOODS = ("good", "slow", "broken", "killed")
_STEPS = _WARM_UP + len(_MOODS) * _STEPS_A_MOOD
_NOBODY = "http://127.0.0.1:9"  # the port of `discard`
_JOB = ("training.global_batch_size=16", "resources.workers=1", "data.eval_source=null", "data.eval_fraction=0.005",
        f"training.steps={_STEPS}", f"training.eval_every={_STEPS}", f"checkpoint.every={_STEPS}")  # fmt: skip


def main() -> None:
    """Alternate both, compare the medians."""
    seconds: dict[str, list[float]] = {mood: [] for mood in ("nobody", *_MOODS)}
    with tempfile.TemporaryDirectory() as folder, mlflow_server(Path(folder)) as server:
        home = Path(folder) / "home"
        _start(home, _NOBODY).finish()  # prepares the dataset
        for number in range(_ROUNDS):
            seconds["nobody"].append(median(_step_times(_start(home, _NOBODY).finish())[_WARM_UP:]))
            order = [_MOODS[(number + place) % len(_MOODS)] for place in range(len(_MOODS))]
            times = _step_times(_with_moods(_start(home, server.uri), server, order))
            for place, mood in enumerate(order):
                begin = _WARM_UP + place * _STEPS_A_MOOD
                seconds[mood].append(median(times[begin + 1 : begin + _STEPS_A_MOOD]))  # the change falls into one
            print(f"round {number + 1}: " + ", ".join(f"{mood} {s[-1]:.4f}" for mood, s in seconds.items()), flush=True)
    ratios = {m: median(s / n for s, n in zip(seconds[m], seconds["nobody"], strict=True)) for m in _MOODS}
    rows = [[mood, f"{median(seconds[mood]):.4f}", f"{ratios.get(mood, 1):.4f}"] for mood in seconds]
    report("tracking", ["the server is", "median s a step", "ratio to nobody"], rows, {"s": seconds, "ratios": ratios})


def _start(home: Path, tracker: str) -> RunningJob:
    os.environ["MLFLOW_TRACKING_URI"] = tracker
    return run_job(Path("language-model"), home, *_JOB)


def _with_moods(job: RunningJob, server: MlflowServer, order: list[str]) -> Result:
    """Let the server change at its steps, and be well again when the run has ended; all must have come to it, once."""
    for place, mood in enumerate(order):
        job.wait_for_step(_WARM_UP + place * _STEPS_A_MOOD)
        _set(server, mood)
    job.wait_for_step(_STEPS)
    _set(server, "good")
    result = job.finish()
    done = command_line(result.home, "sync", result.run_id)
    assert done.returncode == 0, done.stderr
    facts = RunStore(f"sqlite:///{result.home / 'drivetrain.db'}").get(result.run_id).facts
    assert sorted(Result(0, result.run_id, facts, {}, result.home, "").series("loss")) == [*range(1, _STEPS + 1)]
    return result


def _set(server: MlflowServer, mood: str) -> None:
    if mood == "killed":
        server.kill()
    elif not server.runs:
        server.start()
    server.mode = "good" if mood == "killed" else mood


def _step_times(result: Result) -> list[float]:
    """Seconds from step to step, by the rank's own clock."""
    assert result.code == 0, result.errors
    records = ledger.read(RunFolder(result.home / "runs" / result.run_id).ledger)
    return [later["time"] - earlier["time"] for earlier, later in pairwise(records)]


if __name__ == "__main__":
    main()
