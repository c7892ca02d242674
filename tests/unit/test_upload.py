"""Uploads in the background, to storage that fails."""

from __future__ import annotations

import queue
import threading

import pytest
from drivetrain_workers.checkpoints import upload
from drivetrain_workers.checkpoints.remote import RemoteCheckpoints
from drivetrain_workers.checkpoints.upload import Uploader
from drivetrain_workers.records.run_folder import CheckpointId, RunFolder
from drivetrain_workers.spec import CheckpointSpec

from tests.unit.checkpoint_files import make_checkpoint

FIRST, SECOND = CheckpointId(4, 1), CheckpointId(8, 1)


class Storage:
    """Returns one answer per `RemoteCheckpoints.sync`; waits for the next one."""

    def __init__(self) -> None:
        self.answers: queue.Queue[list[CheckpointId] | Exception] = queue.Queue()
        self.requested = threading.Semaphore(0)

    def sync(self) -> list[CheckpointId]:
        self.requested.release()
        answer = self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer


class Reports:
    """Records the reports of an uploader."""

    def __init__(self) -> None:
        self.uploaded: queue.Queue[CheckpointId] = queue.Queue()
        self.problems: queue.Queue[str] = queue.Queue()


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "_INITIAL_RETRY_DELAY_S", 0.0)
    monkeypatch.setattr(upload, "_MAX_RETRY_DELAY_S", 0.0)


@pytest.fixture
def reports() -> Reports:
    return Reports()


def start(storage: object, reports: Reports) -> Uploader:
    return Uploader(storage, reports.uploaded.put, reports.problems.put)  # type: ignore[arg-type]


def test_nothing_is_uploaded_before_a_request(reports: Reports) -> None:
    storage = Storage()
    uploader = start(storage, reports)
    assert not storage.requested.acquire(blocking=False)
    storage.answers.put([SECOND, FIRST])
    uploader.wake()
    assert [reports.uploaded.get(timeout=30) for _ in range(2)] == [SECOND, FIRST]


def test_a_failed_upload_is_reported_and_retried(reports: Reports) -> None:
    storage = Storage()
    for answer in (OSError("no route"), ValueError("a client's own"), [FIRST]):
        storage.answers.put(answer)
    uploader = start(storage, reports)
    assert uploader.finish(30)
    assert reports.uploaded.get_nowait() == FIRST
    assert [reports.problems.get_nowait() for _ in range(2)] == [
        "checkpoints are not uploaded yet (attempt 1): OSError('no route')",
        'checkpoints are not uploaded yet (attempt 2): ValueError("a client\'s own")',
    ]
    assert reports.problems.empty()


def test_attempts_are_counted_for_each_request(reports: Reports) -> None:
    storage = Storage()
    uploader = start(storage, reports)
    for _ in range(2):
        storage.answers.put(OSError("no route"))
        storage.answers.put([FIRST])
        assert uploader.finish(30)
        assert reports.problems.get_nowait().startswith("checkpoints are not uploaded yet (attempt 1)")


def test_finish_times_out(reports: Reports) -> None:
    storage = Storage()
    uploader = start(storage, reports)
    assert not uploader.finish(0.0)
    storage.requested.acquire()  # the attempt continues
    storage.answers.put([FIRST])
    assert reports.uploaded.get(timeout=30) == FIRST


def test_a_checkpoint_that_arrives_during_an_upload_is_uploaded(reports: Reports) -> None:
    storage = Storage()
    uploader = start(storage, reports)
    uploader.wake()
    storage.requested.acquire()
    uploader.wake()
    storage.answers.put([FIRST])
    storage.requested.acquire()  # again, for the second checkpoint
    storage.answers.put([SECOND])
    assert [reports.uploaded.get(timeout=30) for _ in range(2)] == [FIRST, SECOND]


def test_real_storage_that_is_unavailable_at_first(tmp_path, reports: Reports) -> None:
    run, place = RunFolder(tmp_path / "run"), tmp_path / "place"
    for checkpoint in (FIRST, SECOND):
        make_checkpoint(run.path, checkpoint, 2)
    remote = RemoteCheckpoints(run, CheckpointSpec(location=str(place), keep=1))
    sync, attempts = remote.sync, iter([False, True])

    def away_at_first() -> list[CheckpointId]:
        if not next(attempts, True):
            raise OSError("no such bucket")
        return sync()

    remote.sync = away_at_first  # type: ignore[method-assign]
    assert start(remote, reports).finish(60)
    assert reports.uploaded.get_nowait() == SECOND
    assert reports.problems.qsize() == 1
    assert remote.committed() == [SECOND]
