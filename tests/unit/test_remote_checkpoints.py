"""Checkpoints in a folder and in an fsspec store."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from drivetrain_pipelines.errors import CorruptFileError, WrongBytesError
from drivetrain_pipelines.storage.fetch import Fetcher
from drivetrain_pipelines.storage.folder import StorageFolder
from drivetrain_workers.checkpoints.remote import RemoteCheckpoints
from drivetrain_workers.checkpoints.store import committed, newest_valid
from drivetrain_workers.protocol.step_record import Evaluation
from drivetrain_workers.records import ledger
from drivetrain_workers.records.adjustments import Adjustments, Skip
from drivetrain_workers.records.run_folder import CheckpointId, RunFolder
from drivetrain_workers.spec import CheckpointSpec

from tests.unit.checkpoint_files import damage, make_checkpoint

NEWEST = CheckpointId(12, 1)


@pytest.fixture(params=["folder", "memory"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "folder":
        yield str(tmp_path / "place")
        return
    yield f"memory://{tmp_path.name}"
    filesystem = fsspec.filesystem("memory")
    if filesystem.exists(f"/{tmp_path.name}"):
        filesystem.rm(f"/{tmp_path.name}", recursive=True)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Create a run with checkpoints of two ranks at steps 4, 8 and 12."""
    folder = RunFolder(tmp_path / "run")
    for step in (4, 8, 12):
        make_checkpoint(folder.path, CheckpointId(step, 1), 2)
    Adjustments((Skip(0, 8, 1, "loss nan"),)).write(folder.adjustments)
    return folder


def of(run: RunFolder, location: str, keep: int = 2) -> RemoteCheckpoints:
    return RemoteCheckpoints(run, CheckpointSpec(location=location, keep=keep))


def download(remote: RemoteCheckpoints, checkpoint: CheckpointId, parts: int = 2) -> None:
    for part in range(parts):
        remote.download(checkpoint, part, parts, lambda: None)
    remote.finish_download(checkpoint)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the names of downloaded state files."""
    names: list[str] = []
    fetch = Fetcher.fetch

    def counting(self: Fetcher, url: str, *arguments: Any) -> None:
        names.append(Path(url).name)
        fetch(self, url, *arguments)

    monkeypatch.setattr(Fetcher, "fetch", counting)
    return names


def test_storage_has_what_should_be_kept(run: RunFolder, location: str) -> None:
    remote = of(run, location)
    assert remote.sync() == [NEWEST, CheckpointId(8, 1)]
    assert remote.committed() == [NEWEST, CheckpointId(8, 1)]
    assert remote.sync() == []
    make_checkpoint(run.path, CheckpointId(16, 2), 2)
    assert remote.sync() == [CheckpointId(16, 2)]
    assert remote.committed() == [CheckpointId(16, 2), NEWEST]
    assert of(run, location, keep=1).sync() == []
    assert remote.committed() == [CheckpointId(16, 2)]


def test_a_lost_folder_is_restored(run: RunFolder, location: str, fetched: list[str]) -> None:
    remote = of(run, location)
    remote.sync()
    records, adjustments = ledger.read(run.ledger), Adjustments.read(run.adjustments)
    shutil.rmtree(run.path)
    remote.download_records()
    assert ledger.read(run.ledger) == records
    assert Adjustments.read(run.adjustments) == adjustments
    remote.download(NEWEST, 0, 2, lambda: None)
    assert fetched == ["rank-00000.bin"]
    assert committed(run.checkpoints) == []
    download(remote, NEWEST)
    assert fetched == ["rank-00000.bin", "rank-00001.bin"]  # existing files are not fetched again
    assert newest_valid(run.checkpoints) == (NEWEST.folder(run.checkpoints), [])


@pytest.mark.parametrize("name", ["rank-00000.bin", "rank-00000.json"])
def test_a_corrupt_local_part_is_fetched_again(run: RunFolder, location: str, fetched: list[str], name: str) -> None:
    remote = of(run, location)
    remote.sync()
    shutil.rmtree(run.checkpoints)
    remote.download(NEWEST, 0, 2, lambda: None)
    damage(NEWEST.folder(run.checkpoints) / name)
    download(remote, NEWEST)
    assert fetched == ["rank-00000.bin", "rank-00000.bin", "rank-00001.bin"]
    assert newest_valid(run.checkpoints) == (NEWEST.folder(run.checkpoints), [])


def test_damage_in_storage_is_found_and_kept_for_inspection(run: RunFolder, tmp_path: Path) -> None:
    remote = of(run, str(tmp_path / "place"))
    remote.sync()
    there = NEWEST.folder(tmp_path / "place" / "run" / "checkpoints")
    shutil.rmtree(run.checkpoints)
    damage(there / "rank-00001.json")
    with pytest.raises(CorruptFileError, match=r"rank-00001\.json"):
        download(remote, NEWEST)
    shutil.rmtree(run.checkpoints)
    (there / "rank-00000.bin").unlink()
    with pytest.raises(WrongBytesError, match=r"rank-00000\.bin"):
        download(remote, NEWEST)
    damage(there / "manifest.json")
    with pytest.raises(CorruptFileError, match=r"manifest\.json"):
        download(remote, NEWEST)
    assert committed(run.checkpoints) == []
    remote.set_aside(NEWEST)
    assert remote.committed() == [CheckpointId(8, 1)]
    assert remote.already_set_aside() == [NEWEST]
    assert not NEWEST.folder(run.checkpoints).exists()
    make_checkpoint(run.path, CheckpointId(16, 2), 2)
    remote.sync()
    assert remote.committed() == [CheckpointId(16, 2), CheckpointId(8, 1)]
    assert there.is_dir()


def test_the_best_stays_in_storage(run: RunFolder, location: str) -> None:
    """Its score is read from its manifest in storage; an unreadable manifest has no score."""
    make_checkpoint(run.path, CheckpointId(14, 1), 2, Evaluation(1.0, {}, 1.0))
    make_checkpoint(run.path, CheckpointId(16, 1), 2, Evaluation(2.0, {}, 2.0))
    spec = CheckpointSpec(location=location, keep={"last": 1, "best": 1})
    assert RemoteCheckpoints(run, spec).sync() == [CheckpointId(16, 1), CheckpointId(14, 1)]
    shutil.rmtree(CheckpointId(14, 1).folder(run.checkpoints))
    assert RemoteCheckpoints(run, spec).sync() == []
    assert RemoteCheckpoints(run, spec).committed() == [CheckpointId(16, 1), CheckpointId(14, 1)]
    there = StorageFolder(f"{location}/run")
    there.write("checkpoints/step-00000014.g0001/manifest.json", b"{}")
    assert RemoteCheckpoints(run, spec).sync() == []
    assert RemoteCheckpoints(run, spec).committed() == [CheckpointId(16, 1)]
