"""`drivetrain simulate` on a synthetic trace: 20,000 jobs of 60 users on 6,500 GPUs, on one core.

Sizes and durations follow what clusters of this kind report: most jobs are small, a few large ones take most of the
GPU hours, durations are log-normal (Jeon et al. 2019, Hu et al. 2021). Users expect up to three times what their jobs
take; a fifth of the jobs is elastic, a quarter urgent.
"""

from __future__ import annotations

import csv
import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.benchmarks.report import report

_JOBS, _CLUSTER, _GPUS, _LOAD = 20_000, "812x8,1x4", 6_500, 0.95
_SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
_ODDS = [0.35, 0.10, 0.12, 0.20, 0.09, 0.06, 0.04, 0.025, 0.01, 0.004, 0.001]


def write_trace(path: Path, jobs: int, gpus: int, load: float) -> None:
    """Write a trace that would keep ``load`` of the GPUs busy if it could be packed without gaps."""
    draw = np.random.default_rng(0)
    sizes = np.minimum(draw.choice(_SIZES, jobs, p=_ODDS), gpus)
    durations = np.clip(draw.lognormal(np.log(5400), 1.6, jobs), 60, 7 * 86400).round()
    submitted = np.sort(draw.uniform(0, (sizes * durations).sum() / (gpus * load), jobs)).round()
    least = np.where(draw.random(jobs) < 0.2, np.maximum(1, sizes // 4), sizes)
    expected = (durations * draw.uniform(1, 3, jobs)).round()
    users, priorities = draw.zipf(1.5, jobs) % 60, (draw.random(jobs) < 0.25).astype(int)
    with path.open("w", newline="") as sink:
        out = csv.writer(sink)
        out.writerow(["job", "submitted_s", "duration_s", "gpus", "min_gpus", "expected_s", "user", "priority"])
        for number in range(jobs):
            figures = (submitted[number], durations[number], sizes[number], least[number], expected[number])
            out.writerow([f"job-{number:05}", *figures, f"user-{users[number]}", priorities[number]])


def main() -> None:
    """Simulate and print a report."""
    folder = Path(__file__).parents[2] / "build" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    trace, picture = folder / "trace.csv", folder / "scheduling.png"
    write_trace(trace, _JOBS, _GPUS, _LOAD)
    command = [str(Path(sys.executable).with_name("drivetrain")), "simulate", "--trace", str(trace)]
    command += ["--cluster", _CLUSTER, "--picture", str(picture), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures = json.loads(done.stdout)
    best = figures["SJF (oracle)"]["completion_mean_s"]
    rows = [
        [
            name,
            f"{figure['completion_mean_s'] / 3600:.2f} h ({figure['completion_mean_s'] / best:.2f})",
            f"{figure['completion_p95_s'] / 3600:.2f} h",
            f"{figure['utilisation']:.3f}",
            f"{figure['preemptions']:.0f}",
        ]
        for name, figure in figures.items()
    ]
    columns = ["policy", "completion (to the oracle's)", "p95", "utilisation", "preemptions"]
    cpu_s = used.ru_utime + used.ru_stime
    report("scheduling", columns, rows, {"policies": figures, "cpu_s": cpu_s, "jobs": _JOBS, "gpus": _GPUS})
    print(f"{cpu_s:.0f} CPU seconds for all three; {picture}")


if __name__ == "__main__":
    main()
