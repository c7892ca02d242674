"""Agreement of ranks, as threads, on real files."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from drivetrain_pipelines.storage import checksums
from drivetrain_workers.checkpoints import store
from drivetrain_workers.checkpoints.agreement import Agreement
from drivetrain_workers.checkpoints.load import Checkpoint
from drivetrain_workers.checkpoints.memory_copies import MemoryCopies
from drivetrain_workers.checkpoints.remote import RemoteCheckpoints
from drivetrain_workers.checkpoints.store import committed
from drivetrain_workers.errors import CheckpointError
from drivetrain_workers.records import ledger
from drivetrain_workers.records.run_folder import CheckpointId, RunFolder
from drivetrain_workers.spec import CheckpointSpec

from tests.unit.checkpoint_files import damage, make_checkpoint, make_copy
from tests.unit.step_records import step_record


def gathers(world_size: int) -> tuple[list[Callable[[Any], list[Any]]], threading.Barrier]:
    """Return a `gather_objects` for threads, and a barrier that is aborted when one of them fails."""
    slots, barrier = [None] * world_size, threading.Barrier(world_size)

    def of(rank: int) -> Callable[[Any], list[Any]]:
        def gather(value: Any) -> list[Any]:
            slots[rank] = value
            barrier.wait()
            found: list[Any] = list(slots)
            barrier.wait()
            return found

        return gather

    return [of(rank) for rank in range(world_size)], barrier


@dataclass
class Gang:
    """Ranks on separate nodes, which share the run's folder.

    Attributes:
        views: views of the run's folder, by rank, where a rank sees different files.
    """

    folder: Path
    world_size: int = 2
    copies: bool = False
    remote: Callable[[RunFolder], RemoteCheckpoints] | None = None
    views: dict[int, Path] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def checkpoints(self) -> Path:
        return RunFolder(self.run).checkpoints

    def memory(self, rank: int) -> Path:
        return self.folder / f"memory-{rank}"

    def choose(self) -> list[Checkpoint | None]:
        """Return the choice of each rank; raise the first error."""
        by_rank, barrier = gathers(self.world_size)

        def rank_main(rank: int) -> Checkpoint | None:
            run = RunFolder(self.views.get(rank, self.run))
            memory = MemoryCopies(self.memory(rank)) if self.copies else None
            parts = run, self.remote(run) if self.remote else None, memory
            place = rank, self.world_size
            report = self.problems.append
            try:
                return Agreement(*parts, 2, *place, by_rank[rank], report, lambda: None).choose()
            except BaseException:
                barrier.abort()
                raise

        with ThreadPoolExecutor(self.world_size) as pool:
            ranks = [pool.submit(rank_main, rank) for rank in range(self.world_size)]
        errors = [error for rank in ranks if (error := rank.exception())]
        if own := [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]:
            raise own[0]
        return [rank.result() for rank in ranks]

    def chosen(self) -> list[Path | None]:
        return [checkpoint and checkpoint.folder for checkpoint in self.choose()]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the verifications of each state file, by folder and name."""
    counts: Counter[str] = Counter()

    def verify_file(path: Path, size: int, digests: list[str]) -> None:
        counts[f"{path.parent.name}/{path.name}"] += 1
        checksums.verify_file(path, size, digests)

    monkeypatch.setattr(store, "verify_file", verify_file)
    return counts


def test_a_run_without_state(tmp_path: Path) -> None:
    assert Gang(tmp_path).chosen() == [None, None]
    assert Gang(tmp_path, copies=True).chosen() == [None, None]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_byte_is_read_once(tmp_path: Path, read: Counter[str], world_size: int) -> None:
    """A checkpoint of three ranks is read once by a gang of any size; older checkpoints are not read."""
    gang = Gang(tmp_path, world_size)
    make_checkpoint(gang.run, CheckpointId(4, 1), 3)
    newest = make_checkpoint(gang.run, CheckpointId(8, 1), 3)
    assert gang.chosen() == [newest] * world_size
    assert read == {f"{newest.name}/rank-0000{rank}.bin": 1 for rank in range(3)}
    assert gang.problems == []


def cut(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("victim", "change"),
    [
        *((name, change) for name in ("rank-00002.bin", "rank-00001.json") for change in (damage, cut, Path.unlink)),
        *(("manifest.json", change) for change in (damage, cut)),  # without a manifest it is not a checkpoint
    ],
)
def test_a_damaged_checkpoint_is_set_aside(tmp_path: Path, victim: str, change: Callable[[Path], Any]) -> None:
    gang = Gang(tmp_path)
    older, newer, newest = (make_checkpoint(gang.run, CheckpointId(step, 1), 3) for step in (4, 8, 12))
    change(newest / victim)
    damage(newer / "rank-00000.bin")
    assert gang.chosen() == [older, older]
    assert len(gang.problems) == 2
    assert str(newest / victim) in gang.problems[0]
    assert str(newer / "rank-00000.bin") in gang.problems[1]
    assert committed(gang.checkpoints) == [CheckpointId(4, 1)]
    assert {path.name for path in gang.checkpoints.iterdir()} == {
        older.name,
        f"{newer.name}.corrupt",
        f"{newest.name}.corrupt",
    }
    make_checkpoint(gang.run, CheckpointId(12, 1), 3)  # for example downloaded again, and damaged again
    damage(newest / "rank-00001.bin")
    assert gang.chosen() == [older, older]


def test_damage_that_only_one_node_sees_is_not_set_aside(tmp_path: Path) -> None:
    """The other rank's view of the shared folder is stale, or its disk or memory is faulty: the checkpoint is valid."""
    gang = Gang(tmp_path, views={1: tmp_path / "stale"})
    newest = make_checkpoint(gang.run, CheckpointId(8, 1), 2)
    damage(make_checkpoint(gang.views[1], CheckpointId(8, 1), 2) / "rank-00001.bin")
    with pytest.raises(OSError, match=r"cannot be read on every node: .*stale.*rank-00001"):
        gang.choose()
    assert committed(gang.checkpoints) == [CheckpointId(8, 1)]
    assert Gang(tmp_path).chosen() == [newest, newest]


def test_a_newer_copy_is_loaded(tmp_path: Path, read: Counter[str]) -> None:
    """The newest copy that every rank has is loaded; newer ones are removed, and the checkpoint is not read."""
    gang = Gang(tmp_path, copies=True)
    make_checkpoint(gang.run, CheckpointId(8, 1), 2)
    for rank, steps in enumerate([(10, 12), (12,)]):
        for step in steps:
            make_copy(gang.memory(rank), CheckpointId(step, 1), rank, 2)
    make_copy(gang.memory(1), CheckpointId(14, 1), 1, 2)
    found = gang.choose()
    for rank, checkpoint in enumerate(found):
        assert checkpoint
        assert checkpoint.folder == CheckpointId(12, 1).folder(gang.memory(rank))
        assert list(checkpoint.indexes) == [rank]
        assert checkpoint.unsaved == (step_record(12),)
        assert checkpoint.step == 12
    assert read == {f"step-00000012.g0001/rank-0000{rank}.bin": 1 for rank in (0, 1)}
    assert MemoryCopies(gang.memory(1)).completed(1) == [CheckpointId(12, 1)]
    assert MemoryCopies(gang.memory(0)).completed(0) == [CheckpointId(12, 1), CheckpointId(10, 1)]


def test_a_damaged_copy_is_skipped(tmp_path: Path) -> None:
    gang = Gang(tmp_path, copies=True)
    stored = make_checkpoint(gang.run, CheckpointId(8, 1), 2)
    for rank in (0, 1):
        older, newer = (make_copy(gang.memory(rank), CheckpointId(step, 1), rank, 2) for step in (10, 12))
    damage(newer)
    assert gang.chosen() == [CheckpointId(10, 1).folder(gang.memory(rank)) for rank in (0, 1)]
    assert str(newer) in gang.problems[0]
    assert not newer.exists()
    damage(older)
    assert gang.chosen() == [stored, stored]
    assert len(gang.problems) == 2
    assert MemoryCopies(gang.memory(0)).completed(0) == []


@pytest.mark.parametrize(("step", "world_size", "stage"), [(8, 2, 2), (6, 2, 2), (12, 3, 2), (12, 2, 1)])
def test_a_copy_that_does_not_fit(tmp_path: Path, step: int, world_size: int, stage: int) -> None:
    """It is not newer than the checkpoint, or has another world size or stage."""
    gang = Gang(tmp_path, copies=True)
    stored = make_checkpoint(gang.run, CheckpointId(8, 1), 2)
    for rank in (0, 1):
        make_copy(gang.memory(rank), CheckpointId(step, 1), rank, world_size, stage)
    assert gang.chosen() == [stored, stored]


@pytest.fixture
def stored(tmp_path: Path) -> Gang:
    """Return a run that has lost its folder and has checkpoints of steps 4, 8 and 12 in storage."""
    spec = CheckpointSpec(location=str(tmp_path / "place"), keep=3)
    gang = Gang(tmp_path, remote=lambda run: RemoteCheckpoints(run, spec))
    for step in (4, 8, 12):
        make_checkpoint(gang.run, CheckpointId(step, 1), 3)
    RemoteCheckpoints(RunFolder(gang.run), spec).sync()
    gang.run.rename(tmp_path / "lost")
    gang.run.mkdir()
    return gang


def test_the_newest_in_storage_is_downloaded(stored: Gang, read: Counter[str]) -> None:
    newest = CheckpointId(12, 1).folder(stored.checkpoints)
    assert stored.chosen() == [newest, newest]
    assert read == {}  # each block was verified during the download
    assert committed(stored.checkpoints) == [CheckpointId(12, 1)]
    assert [record.step for record in ledger.read(RunFolder(stored.run).ledger)] == [4, 8, 12]
    assert stored.chosen() == [newest, newest]
    assert len(read) == 3


def test_damage_in_storage_is_set_aside(stored: Gang) -> None:
    there = stored.folder / "place" / "run" / "checkpoints"
    (there / "step-00000012.g0001" / "rank-00001.bin").unlink()
    damage(there / "step-00000008.g0001" / "rank-00002.json")
    older = CheckpointId(4, 1).folder(stored.checkpoints)
    assert stored.chosen() == [older, older]
    assert [name in problem for name, problem in zip(["00012", "00008"], stored.problems, strict=True)] == [True] * 2
    assert [path.parent.name for path in sorted(there.glob("*/manifest.corrupt.json"))] == [
        "step-00000008.g0001",
        "step-00000012.g0001",
    ]
    assert [path.name for path in stored.checkpoints.iterdir()] == [older.name]


def test_older_checkpoints_are_not_downloaded(stored: Gang) -> None:
    newest = make_checkpoint(stored.run, CheckpointId(16, 2), 2)
    assert stored.chosen() == [newest, newest]
    older = make_checkpoint(stored.run, CheckpointId(10, 2), 2)
    damage(newest / "rank-00001.bin")
    assert stored.chosen() == [CheckpointId(12, 1).folder(stored.checkpoints)] * 2
    assert older.exists()


def test_a_run_with_only_corrupt_state_does_not_restart(stored: Gang) -> None:
    for path in (stored.folder / "place").glob("*/checkpoints/*/rank-00001.json"):
        damage(path)
    with pytest.raises(CheckpointError, match="can be loaded: 3 are damaged"):
        stored.choose()


def test_unavailable_storage(stored: Gang) -> None:
    class Away(RemoteCheckpoints):
        def committed(self) -> list[CheckpointId]:
            raise OSError("it is away")

    stored.remote = lambda run: Away(run, CheckpointSpec(location=str(stored.folder / "place")))
    with pytest.raises(OSError, match="cannot list the checkpoints of this run in storage: it is away"):
        stored.choose()
    own = make_checkpoint(stored.run, CheckpointId(4, 1), 2)
    assert stored.chosen() == [own, own]
    assert stored.problems == ["storage was not checked for newer checkpoints: it is away"]
