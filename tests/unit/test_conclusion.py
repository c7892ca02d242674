"""The work of a run after training, with a gang and without one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from drivetrain.cluster.protocols import AgentHandle, AgentLostError
from drivetrain.coordinator import conclusion as conclusion_module
from drivetrain.coordinator.conclusion import Conclusion
from drivetrain.job.spec import JobSpec
from drivetrain.tracking.destination import Shipment
from drivetrain.tracking.spool import Spool, read_records
from drivetrain.tracking.totals import Record
from drivetrain.tracking.tracker import Tracker
from drivetrain_pipelines.errors import InputError
from drivetrain_workers.checkpoints.store import committed
from drivetrain_workers.errors import CheckpointError
from drivetrain_workers.model_processes.requests import AssessRequest, ExportRequest, PredictRequest, Request
from drivetrain_workers.records.run_folder import CheckpointId, RunFolder

from tests.unit.checkpoint_files import make_checkpoint
from tests.unit.runs import Agent, job

ASSESSED = {"scores": {"accuracy": 0.75}, "slices": []}
BASELINE = {"name": "logistic", "metric": "accuracy", "scores": {"accuracy": 0.5}, "network": 0.75, "winner": "network"}


class Memory:
    """A tracking server in memory."""

    def __init__(self) -> None:
        self.identity: dict[str, str] = {}
        self.arrived: list[Record] = []

    def ship(self, records: Sequence[Record]) -> Shipment:
        self.arrived += records
        return Shipment()

    def of(self, op: str) -> list[Record]:
        return [record for record in self.arrived if record["op"] == op]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Return the folder of a run that has trained four steps, with checkpoints after two and four."""
    found = RunFolder(tmp_path / "toy-1")
    for step in (2, 4):
        make_checkpoint(found.path, CheckpointId(step, 1), 2)
    return found


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def tracker(folder: RunFolder, memory: Memory) -> Iterator[Tracker]:
    found = Tracker(Spool(folder.spool), lambda: memory)
    for step, seconds in ((1, 9.0), (2, 0.5), (3, 0.25), (4, 0.25)):  # the first one compiles
        found.metrics("train", step, float(step), {"loss": 1.0 / step, "step_s": seconds, "tokens_per_s": 16.0 * step})
    found.metrics("eval", 4, 4.0, {"eval_loss": 0.5, "eval_accuracy": 0.75})
    yield found
    found.close()


def gang(agent: Agent) -> list[AgentHandle]:
    """Return a gang of one agent with two fake methods."""
    return [cast("AgentHandle", agent)]


def conclusion(tracker: Tracker, folder: RunFolder, **sections: Any) -> Conclusion:
    spec: JobSpec = job(**sections)
    return Conclusion(spec, folder, tracker)


def test_facts_come_from_the_logged_records(tracker: Tracker, memory: Memory, folder: RunFolder) -> None:
    facts = conclusion(tracker, folder).conclude([], "data", None)
    assert (facts.train_loss, facts.eval_loss, facts.metrics) == (0.25, 0.5, {"accuracy": 0.75})
    assert (facts.tokens_per_s, facts.step_s) == (40.0, 0.375)  # a mean, and a median
    assert facts.checkpoint == str(CheckpointId(4, 1).folder(folder.checkpoints))
    assert (facts.sample, facts.assessment, facts.problem) == (None, None, "")
    assert tracker.flush(10)
    assert [record["path"] for record in memory.of("artifact")] == [facts.picture] == [str(folder.path / "loss.png")]
    assert (folder.path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_logged_step_there_are_no_figures(tmp_path: Path, memory: Memory) -> None:
    """All steps were done before the coordinator lost its disk; the checkpoint still exists."""
    folder = RunFolder(tmp_path / "toy-2")
    make_checkpoint(folder.path, CheckpointId(4, 1), 2)
    tracker = Tracker(Spool(folder.spool), lambda: memory)
    facts = conclusion(tracker, folder).conclude([], "data", None)
    tracker.close()
    assert (facts.train_loss, facts.eval_loss, facts.metrics, facts.step_s) == (None, None, {}, 0.0)
    assert facts.checkpoint


def test_the_gang_computes_sample_and_assessment(tracker: Tracker, memory: Memory, folder: RunFolder) -> None:
    folder.assessment.mkdir()
    for name in ("assessment.json", "reliability.png"):
        (folder.assessment / name).write_text("x")
    said = json.dumps([{"input": "The", "text": "The end."}])
    agent = Agent({PredictRequest: said, AssessRequest: json.dumps({**ASSESSED, "baseline": BASELINE})})
    made = conclusion(tracker, folder, sample={"prompt": "The"}, baseline=True)
    facts = made.conclude(gang(agent), "data", None)
    assert facts.sample == (folder.path / "sample.txt").read_text() == "The end."
    assert facts.assessment == {**ASSESSED, "baseline": BASELINE}
    assert agent.requests == [
        PredictRequest(str(folder.path), "data", ["The"], str(folder.path)),
        AssessRequest(str(folder.path), "data", {"accuracy": 0.75, "loss": 0.5}),
    ]
    assert tracker.flush(10)
    (logged,) = [record for record in memory.of("metrics") if record["series"] == "assessment"]
    assert (logged["step"], logged["values"]) == (4, {"assessment/accuracy": 0.75, "baseline/accuracy": 0.5})
    assert [record["values"] for record in memory.of("tags")] == [
        {"drivetrain.baseline": "logistic", "drivetrain.winner": "network"}
    ]
    artifacts = [(Path(record["path"]).name, record["folder"]) for record in memory.of("artifact")]
    expected = [("loss.png", None), ("sample.txt", None), ("assessment.json", "assessment")]
    assert artifacts == [*expected, ("reliability.png", "assessment")]


@pytest.mark.parametrize(
    "error",
    [
        CheckpointError("no checkpoint can be loaded"),
        InputError("sample.prompt", "''", "text"),
        AgentLostError(0, "its node is gone"),
    ],
)
def test_a_sample_that_fails_does_not_fail_the_run(error: Exception, tracker: Tracker, folder: RunFolder) -> None:
    """The following parts are still created."""
    folder.assessment.mkdir()
    agent = Agent({PredictRequest: error, AssessRequest: json.dumps(ASSESSED)})
    made = conclusion(tracker, folder, sample={}, explain=True)
    facts = made.conclude(gang(agent), "data", None)
    assert facts.sample is None
    assert facts.assessment == ASSESSED
    assert facts.problem == f"the model is trained, but the sample failed: {error}"
    assert (facts.train_loss, facts.eval_loss) == (0.25, 0.5)


def test_an_error_that_no_one_expects_is_not_hidden(tracker: Tracker, folder: RunFolder) -> None:
    agent = Agent({PredictRequest: ZeroDivisionError()})
    made = conclusion(tracker, folder, sample={})
    with pytest.raises(ZeroDivisionError):
        made.conclude(gang(agent), "data", None)


def test_after_a_crash_requests_run_here(
    tracker: Tracker, memory: Memory, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without agents; the trained model is registered."""
    asked: list[Request] = []

    def ask_here(request: Request) -> str:
        asked.append(request)
        return json.dumps([{"input": "The", "text": "said here"}])

    monkeypatch.setattr(conclusion_module, "run_request", ask_here)
    made = conclusion(tracker, folder, sample={}, tracking={"registered_model": "toys"})
    assert made.conclude([], "data", None).sample == "said here"
    export = folder.path / "export"
    assert [type(request) for request in asked] == [PredictRequest, ExportRequest]
    assert asked[1] == ExportRequest(str(folder.path), "data", str(export))
    assert tracker.flush(10)
    assert memory.of("register") == [{"op": "register", "name": "toys", "folder": str(export)}]


def test_a_model_that_cannot_be_exported_is_an_error(
    tracker: Tracker, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Request) -> str:
        raise CheckpointError("the model failed")

    monkeypatch.setattr(conclusion_module, "run_request", fail)
    with pytest.raises(CheckpointError, match="the model failed"):
        conclusion(tracker, folder, tracking={"registered_model": "toys"}).conclude([], "data", None)
    assert not any(record["op"] == "register" for record in read_records(folder.spool))


def test_the_gang_uploads_the_files_of_its_node(tracker: Tracker, folder: RunFolder, tmp_path: Path) -> None:
    agent = Agent()
    made = conclusion(tracker, folder, checkpoint={"location": str(tmp_path / "storage")})
    assert made.finish_uploads(gang(agent), 5.0) == ""
    assert agent.waited_s == [5.0]
    assert not (tmp_path / "storage").exists()


@pytest.mark.parametrize("uploaded", [False, AgentLostError(0, "gone"), OSError("403")])
def test_checkpoints_that_storage_lacks_are_named(
    uploaded: bool | Exception, tracker: Tracker, folder: RunFolder, tmp_path: Path
) -> None:
    location = str(tmp_path / "storage")
    made = conclusion(tracker, folder, checkpoint={"location": location})
    agent = Agent(uploaded=uploaded)
    problem = made.finish_uploads(gang(agent), 5.0)
    assert problem == (
        f"{location} lacks checkpoints of this run; `drivetrain checkpoints toy-1 --upload` uploads them"
    )


def test_without_a_gang_checkpoints_are_uploaded_from_here(tracker: Tracker, folder: RunFolder, tmp_path: Path) -> None:
    made = conclusion(tracker, folder, checkpoint={"location": str(tmp_path / "storage")})
    assert made.finish_uploads([], 5.0) == ""
    assert committed(tmp_path / "storage" / "toy-1" / "checkpoints") == committed(folder.checkpoints)


def test_without_a_location_there_is_no_upload(tracker: Tracker, folder: RunFolder) -> None:
    agent = Agent(uploaded=False)
    assert conclusion(tracker, folder).finish_uploads(gang(agent), 5.0) == ""
    assert agent.waited_s == []
