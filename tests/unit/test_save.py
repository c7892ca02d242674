"""The checkpoint writer with real files, in one process that is the whole gang."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from drivetrain_workers.checkpoints import save
from drivetrain_workers.checkpoints.load import Checkpoint
from drivetrain_workers.checkpoints.manifest import History, Manifest, Probe
from drivetrain_workers.checkpoints.memory_copies import MemoryCopies
from drivetrain_workers.checkpoints.save import CheckpointWriter, SavePoint
from drivetrain_workers.checkpoints.store import committed, newest_valid
from drivetrain_workers.errors import CheckpointError
from drivetrain_workers.protocol.events import AgentEvent, CheckpointCommitted, CopyMade, ProblemFound, RankId
from drivetrain_workers.protocol.step_record import Evaluation, StepRecord
from drivetrain_workers.records import ledger
from drivetrain_workers.records.run_folder import CheckpointId, RunFolder
from drivetrain_workers.spec import KeepSpec
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.unit.step_records import step_record


@pytest.fixture(autouse=True)
def _group() -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def engine() -> Any:
    """Return the parts of an engine without ZeRO that the writer uses, after the first step."""
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 2)
    module.register_buffer("seen", torch.tensor([5]))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    module(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    return SimpleNamespace(module=module, optimizer=optimizer, zero_optimization_stage=lambda: 0)


def writer(
    run: Path, events: list[AgentEvent], rank: int = 0, world_size: int = 1, memory: MemoryCopies | None = None
) -> CheckpointWriter:
    source, keep = RankId(rank, 3), KeepSpec(last=2)
    return CheckpointWriter(RunFolder(run), source, world_size, keep, events.append, 0.0, memory)


def records(*steps: int) -> tuple[StepRecord, ...]:
    return tuple(step_record(step) for step in steps)


def test_a_saved_checkpoint_can_be_read(tmp_path: Path, engine: Any) -> None:
    events: list[Any] = []
    saving = writer(tmp_path, events)
    evaluated = (*records(1), step_record(2, evaluation=Evaluation(1.0, {}, 1.0)))
    history, probe = History(1001.0, (2.0, 1.5), 1.0, 0), Probe(8, 1.25)
    saving.save(engine, SavePoint(2, 16, evaluated, history, probe))
    saving.wait()
    folder, problems = newest_valid(RunFolder(tmp_path).checkpoints)
    assert folder == CheckpointId(2, 3).folder(RunFolder(tmp_path).checkpoints)
    assert problems == []
    checkpoint = Checkpoint(folder)
    shapes = {"weight": [2, 3], "bias": [2]}
    assert checkpoint.manifest == Manifest(2, 16, 1, 0, shapes, evaluated[1].evaluation, probe, history)
    assert checkpoint.kinds == {"weights", "exp_avg", "exp_avg_sq"}
    weights = checkpoint.weights()
    assert torch.equal(weights["weight"], engine.module.weight)
    assert weights["seen"].tolist() == [5]
    assert ledger.read(RunFolder(tmp_path).ledger) == [*evaluated]
    (event,) = events
    assert isinstance(event, CheckpointCommitted)
    assert (event.source, event.step, event.folder) == (RankId(0, 3), 2, str(folder))
    assert event.bytes == (folder / "rank-00000.bin").stat().st_size


def test_the_next_update_waits_for_the_copy(tmp_path: Path, engine: Any) -> None:
    saving = writer(tmp_path, [])
    for step in range(1, 20):
        before = engine.module.weight.detach().clone()
        saving.save(engine, SavePoint(step, 8 * step, records(step)))
        saving.before_update()
        with torch.no_grad():
            engine.module.weight += 1
        saving.wait()
        folder, _ = newest_valid(RunFolder(tmp_path).checkpoints)
        assert folder
        assert torch.equal(Checkpoint(folder).weights()["weight"], before)
    assert [checkpoint.step for checkpoint in committed(RunFolder(tmp_path).checkpoints)] == [19, 18]
    assert ledger.read(RunFolder(tmp_path).ledger) == [*records(*range(1, 20))]


def test_rank_0_commits_when_all_ranks_have_written(tmp_path: Path, engine: Any) -> None:
    events: list[list[AgentEvent]] = [[], []]
    first, second = (writer(tmp_path, events[rank], rank, 2) for rank in (0, 1))
    first.save(engine, SavePoint(1, 8, records(1)))
    first.before_update()
    assert committed(RunFolder(tmp_path).checkpoints) == []
    second.save(engine, SavePoint(1, 8, records(1)))
    second.wait()
    first.wait()
    assert committed(RunFolder(tmp_path).checkpoints) == [CheckpointId(1, 3)]
    assert [type(event) for event in events[0]] == [CheckpointCommitted]
    assert events[1] == []


def test_the_ledger_is_written_before_the_manifest(
    tmp_path: Path, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path, manifest: Manifest) -> None:
        assert ledger.read(RunFolder(tmp_path).ledger) == [*records(1)]
        raise CheckpointError("ranks [1] did not write their part")

    monkeypatch.setattr(save, "commit", fail)
    events: list[AgentEvent] = []
    saving = writer(tmp_path, events)
    saving.save(engine, SavePoint(1, 8, records(1)))
    saving.before_update()  # does not wait indefinitely
    with pytest.raises(CheckpointError, match=r"ranks \[1\]"):
        saving.wait()
    assert committed(RunFolder(tmp_path).checkpoints) == []
    assert events == []


def test_a_failed_write_is_raised_by_the_next_call(tmp_path: Path, engine: Any) -> None:
    RunFolder(tmp_path).checkpoints.write_text("in the way")
    saving = writer(tmp_path, [])
    saving.save(engine, SavePoint(1, 8, records(1)))
    with pytest.raises(OSError, match="checkpoints"):
        saving.save(engine, SavePoint(2, 16, records(2)))
    with pytest.raises(OSError, match="checkpoints"):
        saving.wait()


def test_copies_go_to_memory(tmp_path: Path, engine: Any) -> None:
    events: list[AgentEvent] = []
    memory = MemoryCopies(tmp_path / "memory")
    saving = writer(tmp_path, events, memory=memory)
    history = History(1001.0, (1.0,))
    saving.copy(engine, SavePoint(2, 16, records(1, 2), history))
    saving.wait()
    (found,) = memory.find(0, 1, 0)
    memory.verify(found, 0)
    folder, copy = memory.open(found, 0)
    assert copy.records == records(1, 2)
    assert copy.manifest.history == history
    assert copy.manifest.whole
    read = Checkpoint(folder, copy.manifest, {0: copy.index}, copy.records)
    assert torch.equal(read.weights()["bias"], engine.module.bias)
    assert not RunFolder(tmp_path).checkpoints.exists()
    (event,) = events
    assert isinstance(event, CopyMade)
    assert (event.source, event.step) == (RankId(0, 3), 2)


def test_a_memory_shortage_is_reported_once(tmp_path: Path, engine: Any) -> None:
    (tmp_path / "memory").write_text("in the way")
    events: list[AgentEvent] = []
    saving = writer(tmp_path, events, memory=MemoryCopies(tmp_path / "memory"))
    for step in (1, 2):
        saving.copy(engine, SavePoint(step, 8 * step))
        saving.wait()
    (problem,) = events
    assert isinstance(problem, ProblemFound)
    assert problem.message.startswith("copies in the node's memory are disabled: ")
    saving.save(engine, SavePoint(3, 24, records(3)))
    saving.wait()
    assert committed(RunFolder(tmp_path).checkpoints) == [CheckpointId(3, 3)]
