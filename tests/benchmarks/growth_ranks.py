"""The records that a recovery reads, by the number of steps of the run.

A rank reads the manifest of its checkpoint. The coordinator reads the ledger's records since the newest step of the
tracker. The whole ledger, which audits read, is measured for comparison.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from drivetrain_pipelines.storage.json_files import write_json
from drivetrain_workers.checkpoints.manifest import History, Manifest
from drivetrain_workers.checkpoints.store import MANIFEST, read_manifest
from drivetrain_workers.protocol.step_record import Evaluation, StepRecord
from drivetrain_workers.records import ledger
from drivetrain_workers.records.run_folder import CheckpointId, RunFolder

from tests.benchmarks.report import report

COLUMNS = ["a recovery reads", "steps", "ms", "times 1,000 steps'"]
_STEPS, _SAVE_EVERY, _WINDOW, _ROUNDS = (1_000, 10_000, 100_000), 50, 64, 5
_BEHIND = 10  # steps whose reports were lost with an agent


def measure(folder: Path, steps: int) -> dict[str, float]:
    """Return the seconds that each kind of read takes in a run with this many steps."""
    run, checkpoint = _make_run(folder, steps)
    readings: dict[str, Callable[[], object]] = {
        "a rank: the manifest": partial(read_manifest, checkpoint),
        "the coordinator: what the tracker lacks": partial(ledger.read_after, run.ledger, steps - _BEHIND),
        "for comparison: the whole ledger": partial(ledger.read, run.ledger),
    }
    return {what: statistics.median(_seconds(read) for _ in range(_ROUNDS)) for what, read in readings.items()}


def rows() -> list[list[str]]:
    """Return a row for each kind of read and number of steps; see `COLUMNS`."""
    found: dict[int, dict[str, float]] = {}
    for steps in _STEPS:
        with tempfile.TemporaryDirectory(prefix="drivetrain-bench-") as folder:
            found[steps] = measure(Path(folder), steps)
    return [
        [what, f"{steps:,}", f"{1000 * found[steps][what]:.2f}", f"{found[steps][what] / least:.2f}"]
        for what, least in found[_STEPS[0]].items()
        for steps in _STEPS
    ]


def _make_run(folder: Path, steps: int) -> tuple[RunFolder, Path]:
    """Return a run's folder with its whole ledger, and its newest checkpoint, without state."""
    run = RunFolder(folder)
    for end in range(_SAVE_EVERY, steps + 1, _SAVE_EVERY):
        records = [_record(step) for step in range(end - _SAVE_EVERY + 1, end + 1)]
        records[-1] = replace(records[-1], evaluation=Evaluation(2.5, {"accuracy": 0.5}, 2.5))
        ledger.write(run.ledger, CheckpointId(end, 1), records)
    checkpoint = CheckpointId(steps, 1).folder(run.checkpoints)
    checkpoint.mkdir(parents=True)
    history = History(1e9, tuple(_record(step).loss for step in range(_WINDOW)), 2.5, 3)
    shapes = {f"layers.{number}.weight": [768, 768] for number in range(100)}
    write_json(checkpoint / MANIFEST, Manifest(steps, 8 * steps, 2, 1, shapes, history=history).to_json())
    return run, checkpoint


def _record(step: int) -> StepRecord:
    return StepRecord(step, (8 * step, 8 * step + 8), 2, 1, 1e9 + step / 3, 2.0 + 1 / (step + 1), 3e-4 / 7, 1.0 / 3)


def _seconds(read: Callable[[], object]) -> float:
    began = time.perf_counter()
    read()
    return time.perf_counter() - began


def main() -> None:
    """Print the growth of read times."""
    found = rows()
    report("growth_ranks", COLUMNS, found, {"rows": found})


if __name__ == "__main__":
    main()
