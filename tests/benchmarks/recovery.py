"""Time from `kill -9` of a rank to the next optimizer step: Drivetrain, Ray Train and torchrun, same configuration.

Also from `kill -STOP`, which the others notice only after the collective's timeout of half an hour.
"""

from __future__ import annotations

import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from drivetrain.api.runs import validate
from drivetrain_workers.engine.batching import solve
from drivetrain_workers.engine.deepspeed_config import deepspeed_config

from tests.benchmarks.report import report

_ROUNDS, _KILL_AT, _CHECKPOINT_EVERY = 3, 7, 5
_BIN = Path(sys.executable).parent
_TIMEOUT_S = 120.0
_PARTS = ("detect", "decide", "fork", "group", "initialize", "load", "step")
_TORCHRUN = [str(_BIN / "torchrun"), "--standalone", "--nproc-per-node=2", "--max-restarts=3"]
_PEERS = {
    "Ray Train": [sys.executable, "-m", "tests.benchmarks.ray_train_peer"],
    "torchrun": [*_TORCHRUN, "-m", "tests.benchmarks.peer_loop"],
}
_MOMENTS = ("lost", "reported", "forked", "grouped", "initialized", "loaded", "stepped")


def main() -> None:
    """Alternate all systems."""
    ours: dict[str, list[dict[str, float]]] = {"kill": [], "stop": []}
    theirs: dict[str, list[float]] = {name: [] for name in _PEERS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(_ROUNDS):
            ours["kill"].append(_drivetrain(Path(folder) / "home", signal.SIGKILL))
            ours["stop"].append(_drivetrain(Path(folder) / "home", signal.SIGSTOP))
            for name, command in _PEERS.items():
                theirs[name].append(_peer(Path(folder) / f"{name}-{number}", command))
            reported = [f"drivetrain {how} {sum(runs[-1].values()):.2f} s" for how, runs in ours.items()]
            reported += [f"{name} {seconds[-1]:.2f} s" for name, seconds in theirs.items()]
            print(f"round {number + 1}: {', '.join(reported)}", flush=True)
    rows: list[list[str]] = []
    totals = {how: [sum(run.values()) for run in runs] for how, runs in ours.items()}
    for how, title in (("kill", "Drivetrain, kill -9"), ("stop", "Drivetrain, kill -STOP")):
        rows += [[f"  {part}", f"{statistics.median(run[part] for run in ours[how]):.3f}", ""] for part in _PARTS]
        rows.append([title, f"{statistics.median(totals[how]):.2f}", ""])
    ratios = {}
    for name, seconds in theirs.items():
        back = [(o, t) for o, t in zip(totals["kill"], seconds, strict=True) if math.isfinite(t)]
        title = f"{name}, kill -9" + (f" ({len(back)} of {len(seconds)} recovered)" if len(back) < len(seconds) else "")
        if back:
            ratios[name] = statistics.median(o / t for o, t in back)
            rows.append([title, f"{statistics.median(t for _, t in back):.2f}", f"{ratios[name]:.3f}"])
        else:
            rows.append([title, "", ""])
    seen = {name: [s if math.isfinite(s) else None for s in seconds] for name, seconds in theirs.items()}
    figures = {"drivetrain_parts_s": ours, "peers_s": seen, "median_ratios": ratios}
    report("recovery", ["of a rank, to the next step", "median s", "ratio of ours to it"], rows, figures)


def _drivetrain(home: Path, harm: signal.Signals) -> dict[str, float]:
    """Send a signal to rank 1 once; return the seconds of every part until the next step is done."""
    overrides = ["training.steps=14", "training.eval_every=14", f"checkpoint.every={_CHECKPOINT_EVERY}"]
    command = [str(_BIN / "drivetrain"), "run", "language-model", "--json", *(f"--set={o}" for o in overrides)]
    environment = {**os.environ, "DRIVETRAIN_HOME": str(home)}
    harmed_at, moments = 0.0, {}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            view: dict[str, Any] = json.loads(line)
            if not harmed_at and view.get("phase") == "training" and view["step"] >= _KILL_AT:
                harmed_at = time.time()
                os.kill(view["pids"]["rank-1"], harm)
            if view.get("generation") == 2 and "stepped" in view.get("timeline", {}):
                moments = {**view["timeline"], "lost": view["facts"]["lost_at"]}
    times = [harmed_at, *(moments[moment] for moment in _MOMENTS)]
    return {part: times[i + 1] - times[i] for i, part in enumerate(_PARTS)}


def _peer(folder: Path, start: list[str]) -> float:
    """Kill worker 1 once; return the seconds until the next step is done."""
    folder.mkdir()
    job = validate("language-model").spec
    plan = solve(job.training.global_batch_size, job.training.micro_batch_size, job.resources.max_workers)
    arguments = {
        "steps": 14,
        "checkpoint_every": _CHECKPOINT_EVERY,
        "workers": job.resources.max_workers,
        "vocab_size": job.data.tokenizer.vocab_size,
        "sequence_length": job.data.sequence_length,
        "model": job.model.args,
        "deepspeed": deepspeed_config(job.training, plan, on_cpu=True),
        "folder": str(folder),
    }
    command = [*start, json.dumps(arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    log_path = folder / "output.log"
    with log_path.open("w") as log, subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process:
        steps = _wait_for_steps(folder, _KILL_AT, process)
        assert steps, log_path.read_text()[-2000:]
        killed_at = time.time()
        os.kill(int((folder / "rank-1.pid").read_text()), signal.SIGKILL)
        while (now := _wait_for_steps(folder, len(steps) + 1, process)) and now[-1] < killed_at:
            time.sleep(0.01)  # a step that was already running when the worker died
        if process.poll() is None and not now:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
        return next((at for at in now if at > killed_at), math.inf) - killed_at


def _wait_for_steps(folder: Path, count: int, process: subprocess.Popen[bytes]) -> list[float]:
    """Return the times of the steps, once there are enough; empty if the peer ends or makes no step for too long."""
    path, deadline = folder / "steps.txt", time.monotonic() + _TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        times = [float(line) for line in path.read_text().splitlines()] if path.exists() else []
        if len(times) >= count:
            return times
        time.sleep(0.01)
    return []


if __name__ == "__main__":
    main()
