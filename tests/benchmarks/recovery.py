"""From `kill -9` of a rank to the next optimizer step: Drivetrain beside Ray Train, same model, same configuration."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from drivetrain.api import validate
from drivetrain_workers.batching import solve
from drivetrain_workers.deepspeed_config import deepspeed_config

from tests.benchmarks.report import report

_ROUNDS, _KILL_AT, _CHECKPOINT_EVERY = 3, 7, 5
_BIN = Path(sys.executable).parent
_PARTS = ("detect", "decide", "fork", "group", "initialize", "load", "step")
_MOMENTS = ("lost", "told", "forked", "grouped", "initialized", "loaded", "stepped")


def main() -> None:
    """Alternate both."""
    ours: list[dict[str, float]] = []
    theirs: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(_ROUNDS):
            ours.append(_drivetrain(Path(folder) / "home"))
            theirs.append(_ray_train(Path(folder) / f"ray-train-{number}"))
            total = sum(ours[-1].values())
            print(f"round {number + 1}: drivetrain {total:.2f} s, Ray Train {theirs[-1]:.2f} s", flush=True)
    parts = {part: statistics.median(run[part] for run in ours) for part in _PARTS}
    totals = [sum(run.values()) for run in ours]
    ratio = statistics.median(o / t for o, t in zip(totals, theirs, strict=True))
    rows = [[f"  {part}", f"{seconds:.3f}", ""] for part, seconds in parts.items()]
    rows += [
        ["Drivetrain", f"{statistics.median(totals):.2f}", f"{ratio:.3f}"],
        ["Ray Train", f"{statistics.median(theirs):.2f}", "1.000"],
    ]
    figures = {"drivetrain_parts_s": ours, "ray_train_s": theirs, "median_ratio": ratio}
    report("recovery", ["kill -9 of a rank to the next step", "median s", "ratio"], rows, figures)


def _drivetrain(home: Path) -> dict[str, float]:
    """Kill rank 1 once; returns the seconds of every part until the next step is done."""
    overrides = ["training.steps=14", "training.eval_every=14", f"checkpoint.every={_CHECKPOINT_EVERY}"]
    command = [str(_BIN / "drivetrain"), "run", "language-model", "--json", *(f"--set={o}" for o in overrides)]
    environment = {**os.environ, "DRIVETRAIN_HOME": str(home)}
    killed_at, moments = 0.0, {}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            view: dict[str, Any] = json.loads(line)
            if not killed_at and view.get("phase") == "training" and view["step"] >= _KILL_AT:
                killed_at = time.time()
                os.kill(view["pids"]["rank-1"], signal.SIGKILL)
            if view.get("generation") == 2 and "stepped" in view.get("timeline", {}):
                moments = {**view["timeline"], "lost": view["facts"]["lost_at"]}
    times = [killed_at, *(moments[moment] for moment in _MOMENTS)]
    return {part: times[i + 1] - times[i] for i, part in enumerate(_PARTS)}


def _ray_train(folder: Path) -> float:
    """Kill worker 1 once; seconds until the next step is done."""
    folder.mkdir()
    job = validate("language-model").spec
    plan = solve(job.training.global_batch_size, job.training.micro_batch_size, job.resources.workers)
    arguments = {
        "steps": 14,
        "checkpoint_every": _CHECKPOINT_EVERY,
        "workers": job.resources.workers,
        "vocab_size": job.data.tokenizer.vocab_size,
        "sequence_length": job.data.sequence_length,
        "model": job.model.args,
        "deepspeed": deepspeed_config(job.training, plan, on_cpu=True),
        "folder": str(folder),
    }
    command = [sys.executable, "-m", "tests.benchmarks.ray_train_peer", json.dumps(arguments)]
    with (folder / "output.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        steps = _wait_for_steps(folder, _KILL_AT, process)
        killed_at = time.time()
        os.kill(int((folder / "rank-1.pid").read_text()), signal.SIGKILL)
        while (now := _wait_for_steps(folder, len(steps) + 1, process))[-1] < killed_at:
            time.sleep(0.01)  # a step that was already under way when the worker died
        return next(at for at in now if at > killed_at) - killed_at


def _wait_for_steps(folder: Path, count: int, process: subprocess.Popen[bytes]) -> list[float]:
    path = folder / "steps.txt"
    while process.poll() is None:
        times = [float(line) for line in path.read_text().splitlines()] if path.exists() else []
        if len(times) >= count:
            return times
        time.sleep(0.01)
    raise RuntimeError(f"Ray Train ended early: {(folder / 'output.log').read_text()[-2000:]}")


if __name__ == "__main__":
    main()
