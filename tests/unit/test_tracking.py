from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from drivetrain.tracking.embedded import make_database
from drivetrain.tracking.spool import Record, Spool
from drivetrain.tracking.tracker import Tracker
from drivetrain_pipelines.errors import CorruptFileError
from drivetrain_workers.records import ledger
from drivetrain_workers.records.run_folder import CheckpointId
from mlflow import MlflowClient


class Recorder:
    """A destination that fails as often as told, and remembers what arrived."""

    def __init__(self, failures: int = 0) -> None:
        self.identity = {"where": "memory"}
        self.failures = failures
        self.arrived: list[Record] = []

    def ship(self, records: list[Record]) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the server is away")
        self.arrived += records


def steps(records: list[Record]) -> list[int]:
    return [record["step"] for record in records if record["op"] == "metrics"]


def test_everything_arrives_in_order_although_the_server_fails(tmp_path: Path) -> None:
    recorder = Recorder(failures=1)
    tracker = Tracker(Spool(tmp_path), lambda: recorder)
    for step in range(1, 50):
        tracker.metrics("train", step, float(step), {"loss": 1.0 / step})
    assert tracker.flush(10)
    tracker.close()
    assert steps(recorder.arrived) == list(range(1, 50))
    assert tracker.identity == {"where": "memory"}


def test_a_step_done_again_is_logged_once(tmp_path: Path) -> None:
    recorder = Recorder()
    tracker = Tracker(Spool(tmp_path), lambda: recorder)
    for step in (1, 2, 3, 2, 3, 4):
        tracker.metrics("train", step, 0.0, {"loss": 0.0})
    assert tracker.flush(10)
    tracker.close()
    again = Tracker(Spool(tmp_path), lambda: recorder)  # the coordinator was restarted
    assert again.newest_step("train") == 4
    assert again.newest_step("eval") == 0
    again.metrics("train", 4, 0.0, {"loss": 0.0})
    again.metrics("train", 5, 0.0, {"loss": 0.0})
    assert again.flush(10)
    again.close()
    assert steps(recorder.arrived) == [1, 2, 3, 4, 5]


def test_logging_does_not_wait_for_a_server_that_hangs(tmp_path: Path) -> None:
    release = threading.Event()

    class Hanging(Recorder):
        def ship(self, records: list[Record]) -> None:
            release.wait()
            super().ship(records)

    hanging = Hanging()
    tracker = Tracker(Spool(tmp_path), lambda: hanging)
    for step in range(1, 100):
        tracker.metrics("train", step, 0.0, {"loss": 0.0})
    assert not tracker.flush(0.1)
    release.set()
    assert tracker.flush(10)
    tracker.close()
    assert steps(hanging.arrived) == list(range(1, 100))


def test_spool_survives_a_torn_line_and_a_lost_mark(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append({"op": "a"})
    spool.mark_shipped(spool.pending()[1])
    spool.append({"op": "b"})
    spool.close()
    with (tmp_path / "spool.jsonl").open("ab") as file:
        file.write(b'{"op": "torn')
    again = Spool(tmp_path)
    assert [record["op"] for record in again.pending()[0]] == ["b"]
    again.append({"op": "c"})
    again.close()
    (tmp_path / "shipped.json").write_text("{torn")
    last = Spool(tmp_path)
    assert [record["op"] for record in last.pending()[0]] == ["a", "b", "c"]
    last.close()


def test_ledger_keeps_the_newest_generation_of_each_step(tmp_path: Path) -> None:
    def records(generation: int, *numbers: int) -> list[ledger.Record]:
        return [{"step": number, "generation": generation} for number in numbers]

    ledger.write(tmp_path, CheckpointId(4, 1), records(1, 1, 2, 3, 4))
    ledger.write(tmp_path, CheckpointId(8, 1), records(1, 5, 6, 7, 8))
    ledger.write(tmp_path, CheckpointId(8, 2), records(2, 5, 6, 7, 8))
    found = ledger.read(tmp_path)
    assert [record["step"] for record in found] == list(range(1, 9))
    assert [record["generation"] for record in found] == [1, 1, 1, 1, 2, 2, 2, 2]
    piece = next(tmp_path.glob("*g0001.json"))
    os.truncate(piece, 20)
    with pytest.raises(CorruptFileError, match=piece.name):
        ledger.read(tmp_path)


def test_a_database_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    """Killed while MLflow makes its tables, which takes it seconds, and made by the next who needs it."""
    path, artifacts = tmp_path / "mlflow.db", tmp_path / "artifacts"
    script = f"""
from pathlib import Path
from drivetrain.tracking.embedded import make_database
make_database(Path({str(path)!r}), Path({str(artifacts)!r}))
"""
    maker = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    begun = tmp_path / "mlflow.new"
    while not (begun.exists() and begun.stat().st_size):
        time.sleep(0.01)
    maker.kill()
    maker.wait()
    assert not path.exists(), "it was killed too late to show anything"
    make_database(path, artifacts)
    client = MlflowClient(f"sqlite:///{path}")
    assert client.create_experiment("one")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mlflow.db", "mlflow.making"]
