"""Steady training throughput of the whole of Drivetrain, compared with a bare DeepSpeed script with preloaded tensors.

The bare script runs with default settings, and again with the allocator settings of our ranks.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

from drivetrain.api.runs import validate
from drivetrain_workers.agent.fork_server_process import KEEP_FREED_MEMORY
from drivetrain_workers.engine.batching import solve
from drivetrain_workers.engine.deepspeed_config import deepspeed_config
from drivetrain_workers.records import ledger
from drivetrain_workers.records.run_folder import RunFolder

from tests.benchmarks.report import report

_ROUNDS, _STEPS, _WARM_UP = 6, 50, 10
_BIN = Path(sys.executable).parent


def main() -> None:
    """Alternate both and compare the step times after the tenth step."""
    job = validate("language-model").spec
    plan = solve(job.training.global_batch_size, job.training.micro_batch_size, job.resources.max_workers)
    peer = {
        "steps": _STEPS,
        "vocab_size": job.data.tokenizer.vocab_size,
        "sequence_length": job.data.sequence_length,
        "model": job.model.args,
        "deepspeed": deepspeed_config(job.training, plan, on_cpu=True),
    }
    ours, bare, tuned = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        for number in range(_ROUNDS):
            times = Path(folder) / f"bare-{number}.json"
            bare.append(_bare(peer, times, job.resources.max_workers, {}))
            ours.append(_drivetrain(home))
            tuned.append(_bare(peer, times, job.resources.max_workers, KEEP_FREED_MEMORY))
            seconds = f"bare {bare[-1]:.4f}, drivetrain {ours[-1]:.4f}, bare with our allocator {tuned[-1]:.4f}"
            print(f"round {number + 1}, s a step: {seconds}", flush=True)
    rows = [
        [title, f"{statistics.median(seconds):.4f}", f"{_ratio(bare, seconds):.3f}"]
        for title, seconds in (
            ("bare DeepSpeed under torchrun", bare),
            ("drivetrain run", ours),
            ("bare, with the allocator settings of our ranks", tuned),
        )
    ]
    figures = {"bare_s": bare, "drivetrain_s": ours, "bare_tuned_s": tuned}
    ratios = {"median_ratio": _ratio(bare, ours), "median_ratio_to_tuned": _ratio(tuned, ours)}
    report("throughput", ["", "median s a step", "throughput ratio"], rows, {**figures, **ratios})


def _ratio(peer: list[float], ours: list[float]) -> float:
    """Return the median over the rounds of the throughput relative to the peer."""
    return statistics.median(p / o for p, o in zip(peer, ours, strict=True))


def _bare(peer: dict[str, object], times: Path, workers: int, settings: dict[str, str]) -> float:
    command = [str(_BIN / "torchrun"), "--standalone", f"--nproc-per-node={workers}", "-m", "tests.benchmarks.bare"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **settings}
    arguments = json.dumps({**peer, "times": str(times)})
    subprocess.run([*command, arguments], env=environment, check=True, capture_output=True)
    return _seconds_a_step(json.loads(times.read_text()))


def _drivetrain(home: Path) -> float:
    overrides = [f"--set=training.steps={_STEPS}", f"--set=training.eval_every={_STEPS}"]
    command = [str(_BIN / "drivetrain"), "run", "language-model", "--json", *overrides]
    environment = {**os.environ, "DRIVETRAIN_HOME": str(home)}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    run_id = json.loads(done.stdout.splitlines()[-1])["run_id"]
    records = ledger.read(RunFolder(home / "runs" / run_id).ledger)
    return _seconds_a_step([record.time for record in records])


def _seconds_a_step(times: list[float]) -> float:
    """Return the median over the steps after the warm-up, from wall-clock times at the end of each step."""
    after = times[_WARM_UP:]
    return statistics.median(b - a for a, b in pairwise(after))


if __name__ == "__main__":
    main()
