"""`drivetrain plan` compared with the run: memory of a rank, and time of a step, without and with a past run.

Five models with their ZeRO stages. Each is planned and run with two global batch sizes; the plan of the second one
knows the first run, and no other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.report import report

_COMMAND = Path(sys.executable).with_name("drivetrain")
_STEPS = 12
_BATCHES = (8, 16)
_SETTINGS = (
    {"zero_stage": 0, "workers": 2, "layers": 6, "width": 384},
    {"zero_stage": 1, "workers": 2, "layers": 4, "width": 1024},
    {"zero_stage": 2, "workers": 2, "layers": 8, "width": 640},
    {"zero_stage": 3, "workers": 2, "layers": 6, "width": 768},
    {"zero_stage": 2, "workers": 1, "layers": 12, "width": 512},
)


def main() -> None:
    """Plan, run, compare."""
    rows, figures = [], []
    for number, setting in enumerate(_SETTINGS):
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder)
            for batch in _BATCHES:
                found = _one(home, setting, batch)
                figures.append({**setting, "batch": batch, "calibrated": batch != _BATCHES[0], **found})
                rows.append(_row(figures[-1]))
                print(f"{number + 1} of {len(_SETTINGS)}, batch {batch}: {rows[-1]}", flush=True)
    columns = ["", "memory, GB: plan", "run", "ratio", "s a step: plan", "run", "ratio", "past run known"]
    report("plan", columns, rows, {"settings": figures})


def _one(home: Path, setting: dict[str, int], batch: int) -> dict[str, float]:
    size = {"layers": setting["layers"], "width": setting["width"], "heads": 8}
    training = {"steps": _STEPS, "global_batch_size": batch, "zero_stage": setting["zero_stage"], "eval_every": _STEPS}
    overrides = [
        "data.eval_source=null",
        "data.eval_fraction=0.005",
        f"model.args={json.dumps(size)}",
        *(f"training.{key}={value}" for key, value in training.items()),
        f"resources.workers={setting['workers']}",
        f"checkpoint.every={_STEPS // 2}",  # so that some steps run in parallel with the copy, as in longer runs
    ]
    arguments = ["language-model", "--json", *(f"--set={override}" for override in overrides)]
    plan = json.loads(_drivetrain(home, "plan", *arguments))["as_written"]
    run = json.loads(_drivetrain(home, "run", *arguments).splitlines()[-1])["facts"]
    return {
        "planned_bytes": sum(plan["memory"].values()),
        "peak_bytes": run["peak_bytes"],
        "planned_step_s": sum(plan["pace"][part] for part in ("computing", "communicating", "updating", "offloading")),
        "step_s": run["step_s"],
    }


def _drivetrain(home: Path, *arguments: str) -> str:
    environment = {**os.environ, "DRIVETRAIN_HOME": str(home)}
    return subprocess.run([_COMMAND, *arguments], env=environment, check=True, capture_output=True, text=True).stdout


def _row(figures: dict[str, Any]) -> list[str]:
    title = "zero {zero}, {workers} x, {layers} layers of {width}, batch {batch}".format_map(figures)
    cells = [title]
    for planned, measured, unit in (("planned_bytes", "peak_bytes", 1e9), ("planned_step_s", "step_s", 1)):
        cells += [f"{figures[key] / unit:.3f}" for key in (planned, measured)]
        cells.append(f"{figures[planned] / figures[measured]:.3f}")
    return [*cells, "yes" if figures["calibrated"] else "no"]


if __name__ == "__main__":
    main()
