from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from drivetrain.tracking import spool as spool_module
from drivetrain.tracking.destination import DeletedError, Shipment
from drivetrain.tracking.embedded import make_database
from drivetrain.tracking.mark import Mark
from drivetrain.tracking.spool import Spool, SpoolReader, read_records
from drivetrain.tracking.totals import Record, Totals
from drivetrain.tracking.tracker import Tracker
from drivetrain_pipelines.storage.json_files import read_json, write_json
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient


class Recorder:
    """A destination that fails a given number of times, and keeps the received records."""

    def __init__(self, failures: int = 0) -> None:
        self.identity = {"where": "memory"}
        self.failures = failures
        self.arrived: list[Record] = []

    def ship(self, records: Sequence[Record]) -> Shipment:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the server is away")
        self.arrived += records
        return Shipment()


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
        def ship(self, records: Sequence[Record]) -> Shipment:
            release.wait()
            return super().ship(records)

    hanging = Hanging()
    tracker = Tracker(Spool(tmp_path), lambda: hanging)
    for step in range(1, 100):
        tracker.metrics("train", step, 0.0, {"loss": 0.0})
    assert not tracker.flush(0.1)
    release.set()
    assert tracker.flush(10)
    tracker.close()
    assert steps(hanging.arrived) == list(range(1, 100))


def test_another_run_on_the_server_gets_the_whole_history(tmp_path: Path) -> None:
    """What is shipped belongs to a run of the destination: a server that was set up again has nothing."""
    for identity, expected in (("first", [1, 2]), ("first", [3]), ("second", [1, 2, 3, 4])):
        recorder = Recorder()
        recorder.identity = {"run": identity}
        tracker = Tracker(Spool(tmp_path), lambda recorder=recorder: recorder)  # type: ignore[misc]
        for step in expected[-2:]:
            tracker.metrics("train", step, 0.0, {"loss": 0.0})
        assert tracker.flush(10)
        tracker.close()
        assert steps(recorder.arrived) == expected


class Choosy(Recorder):
    """A destination that does not accept step 2."""

    def __init__(self) -> None:
        super().__init__()
        self.away = True

    def ship(self, records: Sequence[Record]) -> Shipment:
        late = {number: "step 2 fails" for number, record in enumerate(records) if self.away and record["step"] == 2}
        super().ship([record for number, record in enumerate(records) if number not in late])
        return Shipment(late, {"metric far": "too far"}, {"metric a@b": "is called a_b"})


def test_a_late_record_holds_up_no_other_and_arrives_in_the_end(tmp_path: Path) -> None:
    choosy = Choosy()
    tracker = Tracker(Spool(tmp_path), lambda: choosy)
    for step in (1, 2, 3):
        tracker.metrics("train", step, 0.0, {"loss": 0.0})
    assert not tracker.flush(60), "waiting longer would not help"
    assert steps(choosy.arrived) == [1, 3]
    assert tracker.problem == "step 2 fails"
    assert tracker.notes == ("metric far is not accepted: too far", "metric a@b is called a_b")
    tracker.close()
    again = Tracker(Spool(tmp_path), lambda: choosy)  # the coordinator was restarted
    assert not again.flush(60)
    choosy.away = False
    assert again.flush(60)
    assert (steps(choosy.arrived), again.problem, again.notes) == ([1, 3, 2], "", tracker.notes)
    again.close()


def test_waiting_ends_when_the_run_was_deleted(tmp_path: Path) -> None:
    class Gone(Recorder):
        def ship(self, records: Sequence[Record]) -> Shipment:
            raise DeletedError("it was deleted")

    tracker = Tracker(Spool(tmp_path), Gone)
    tracker.begin()
    assert not tracker.flush(60)
    assert (tracker.deleted, tracker.problem) == (True, "it was deleted")
    tracker.close()


@given(
    spread=st.lists(st.lists(st.sampled_from(["ok", "late", "refused"]), min_size=1, max_size=5), max_size=6),
    known=st.booleans(),
)
def test_a_mark_survives_its_file(spread: list[list[str]], known: bool) -> None:
    """After any shipments a reader of the file knows the same, and no late record is forgotten."""
    mark, offset, late = Mark(identity={"run": "a"} if known else {}), 0, set()
    for outcomes in spread:
        offsets = [offset + 10 * number for number in range(len(outcomes))]
        found = {number: "why" for number, outcome in enumerate(outcomes) if outcome == "late"}
        refused = {f"metric {offsets[n]}": "why" for n, outcome in enumerate(outcomes) if outcome == "refused"}
        mark = mark.after(Shipment(found, refused), offsets, offset := offset + 10 * len(outcomes))
        late |= {offsets[number] for number in found}
    assert Mark.from_json(json.loads(json.dumps(mark.to_json()))) == mark
    assert (mark.offset, {*mark.late}) == (offset, late)
    assert mark.after(Shipment(), sorted(late), mark.offset).late == {}
    assert mark.of({"run": "a"}) == Mark(offset, {"run": "a"}, mark.late, mark.refused)
    assert mark.of({"run": "b"}).offset == (0 if known else offset)


def test_spool_survives_a_torn_line_and_a_lost_mark(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append({"op": "a"})
    spool.store_mark(Mark(spool.pending().end))
    spool.append({"op": "b"})
    spool.close()
    with (tmp_path / "spool.jsonl").open("ab") as file:
        file.write(b'{"op": "torn')
    again = Spool(tmp_path)
    assert [record["op"] for record in again.pending().records] == ["b"]
    again.append({"op": "c"})
    again.close()
    (tmp_path / "shipped.json").write_text("{torn")
    last = Spool(tmp_path)
    assert [record["op"] for record in last.pending().records] == ["a", "b", "c"]
    last.close()


def log_everything(spool: Spool, steps: Iterable[int]) -> None:
    """Log the records of all kinds of one step: each must be reflected in the totals."""
    for step in steps:
        values = {"loss": 1 / step, "tokens_per_s": 10.0 * step}
        spool.append({"op": "metrics", "series": "train", "step": step, "time_ms": step, "values": values})
        energy = {"gpu0/energy_joules": 0.1 * step, "gpu1/energy_joules": 0.2, "cpu": 3.0}
        spool.append({"op": "metrics", "series": "system/a", "step": step, "time_ms": step, "values": energy})
        if step % 3 == 0:
            evaluation = {"eval_loss": 2 / step, "eval_accuracy": 0.5}
            spool.append({"op": "metrics", "series": "eval", "step": step, "time_ms": step, "values": evaluation})
        if step % 5 == 1:
            spool.append({"op": "begin"})
        spool.append({"op": "artifact", "path": f"/{step}", "folder": None})


def totals_of_all(folder: Path) -> Totals:
    totals = Totals()
    for record in read_records(folder):
        totals.add(record)
    return totals


def test_totals_are_those_of_all_records(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    assert spool.totals == Totals()
    log_everything(spool, range(1, 8))
    found = spool.totals
    assert found.begun
    assert (found.newest_step("train"), found.newest_step("eval"), found.newest_step("other")) == (7, 6, 0)
    assert found.newest == {
        "train": {"loss": 1 / 7, "tokens_per_s": 70.0},
        "eval": {"eval_loss": 2 / 6, "eval_accuracy": 0.5},
    }
    assert found.joules == pytest.approx(0.1 * 28 + 0.2 * 7)
    assert found.joules_since_begin == pytest.approx(0.7 + 0.2)  # restarted during step 6
    assert (found.mean("tokens_per_s"), found.mean("loss")) == (40.0, None)
    spool.close()


def test_opening_reads_only_records_after_the_totals(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    log_everything(spool, range(1, 20))
    spool.close()
    known = json.loads((tmp_path / "totals.json").read_text())["content"]["offset"]
    assert known == spool.size() == (tmp_path / "spool.jsonl").stat().st_size
    with (tmp_path / "spool.jsonl").open("r+b") as file:  # a reader of these records would fail
        file.write(b"x" * (known - 1))
    again = Spool(tmp_path)
    assert again.totals == spool.totals
    log_everything(again, range(20, 23))
    assert SpoolReader(tmp_path).update() == again.totals
    again.close()


def test_totals_are_written_while_the_spool_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For any length of the run, a killed writer leaves only a few records after the stored totals."""
    monkeypatch.setattr(spool_module, "_TOTALS_EVERY_BYTES", 1000)
    spool = Spool(tmp_path)
    for step in range(1, 200):
        log_everything(spool, [step])
        size = (tmp_path / "spool.jsonl").stat().st_size
        known = SpoolReader(tmp_path).offset
        assert size - known < 1000 + 1000, "of one step there are fewer than 1000 bytes"
    assert known > 10_000
    shutil.copytree(tmp_path, tmp_path / "left")  # the state after a kill of the writer
    again = Spool(tmp_path / "left")
    assert again.totals == spool.totals == totals_of_all(tmp_path)
    again.close()
    spool.close()


@pytest.mark.parametrize("damage", ["missing", "torn", "changed", "older version", "too far", "within a record"])
def test_totals_that_are_lost_are_made_of_the_records(tmp_path: Path, damage: str) -> None:
    spool = Spool(tmp_path)
    log_everything(spool, range(1, 9))
    spool.close()
    path = tmp_path / "totals.json"
    content = read_json(path)
    match damage:
        case "missing":
            path.unlink()
        case "torn":
            path.write_bytes(path.read_bytes()[:50])
        case "changed":
            path.write_text(path.read_text().replace('"begun": true', '"begun": false'))
        case "older version":
            write_json(path, {**content, "totals": {"begun": False}})
        case "too far":
            write_json(path, {"offset": content["offset"] + 1, "totals": Totals().to_json()})
        case "within a record":
            write_json(path, {"offset": content["offset"] - 7, "totals": Totals().to_json()})
    assert SpoolReader(tmp_path).update() == spool.totals
    again = Spool(tmp_path)
    assert again.totals == spool.totals
    again.close()
    assert read_json(path) == content


def test_a_reader_follows_a_spool_that_grows(tmp_path: Path) -> None:
    reader = SpoolReader(tmp_path / "spool")
    assert reader.update() == Totals()
    spool = Spool(tmp_path / "spool")
    for step in range(1, 12):
        log_everything(spool, [step])
        assert reader.update() == spool.totals
    with (tmp_path / "spool" / "spool.jsonl").open("ab") as file:
        file.write(b'{"op": "torn')
    assert reader.update() == spool.totals
    spool.close()
    (tmp_path / "spool" / "spool.jsonl").write_bytes(b'{"op": "begin"}\n')  # data that was not synced is lost
    assert reader.update() == Totals(begun=True)


def test_a_torn_line_is_cut_wherever_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "_BLOCK_BYTES", 16)
    path = tmp_path / "spool.jsonl"
    for whole in (b"", b'{"op": "begin"}\n', b'{"op": "begin"}\n' * 3):
        for torn in range(40):
            path.write_bytes(whole + b"x" * torn)
            Spool(tmp_path).close()
            assert path.read_bytes() == whole


def test_a_record_that_does_not_fit_on_the_disk_leaves_nothing(tmp_path: Path) -> None:
    """Neither file nor totals contain it, and the next record is complete. A file size limit simulates a full disk."""
    script = f"""
import resource, signal
from pathlib import Path
from drivetrain.tracking.spool import Spool
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
spool = Spool(Path({str(tmp_path)!r}))
def log(step, length=1):
    values = {{"loss": 1.0, "n" * length: 1.0}}
    spool.append({{"op": "metrics", "series": "train", "step": step, "time_ms": 1, "values": values}})
log(1)
resource.setrlimit(resource.RLIMIT_FSIZE, (spool.size() + 400, resource.RLIM_INFINITY))
try:
    log(2, 1000)
except OSError:
    log(3)
assert spool.totals.newest_step("train") == 3
spool.close()
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert steps(list(read_records(tmp_path))) == [1, 3]
    assert SpoolReader(tmp_path).update() == totals_of_all(tmp_path)


def test_a_database_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    """The process is killed while MLflow creates its tables; the next one creates the database."""
    path, artifacts = tmp_path / "mlflow.db", tmp_path / "artifacts"
    script = f"""
from pathlib import Path
from drivetrain.tracking.destination import Shipment
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
