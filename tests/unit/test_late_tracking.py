"""What runs that have ended could not send arrives when the tracking server answers again."""

from __future__ import annotations

from pathlib import Path

import pytest
from drivetrain.coordinator.late_tracking import LateTracking, Sent
from drivetrain.runs.states import Ended, Progress, Queued
from drivetrain.runs.store import RunRecord, RunStore
from drivetrain_workers.protocol.reasons import Reason


class Server:
    """Tracking servers by address, of which some are away."""

    def __init__(self, store: RunStore) -> None:
        self.store, self.away, self.asked = store, {"a"}, list[str]()
        self.deleted = set[str]()

    def send(self, record: RunRecord) -> Sent:
        self.asked.append(record.id)
        tracked = record.facts.mlflow_uri not in self.away and record.id not in self.deleted
        self.store.update_facts(record.id, tracked=tracked)
        return Sent(tracked, record.id in self.deleted)


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    found = RunStore(f"sqlite:///{tmp_path / 'runs.db'}")
    for run, uri in (("a-1", "a"), ("a-2", "a"), ("b-1", "b"), ("c-1", "a")):
        found.create(run, "fingerprint", Queued(), mlflow_uri=uri)
        if run != "c-1":
            found.save(run, Ended(progress=Progress(), reason=Reason.USER_CODE), "test")
            found.update_facts(run, released=True, tracked=False)
    return found


def test_a_silent_server_is_asked_once_and_a_run_until_it_is_complete(store: RunStore) -> None:
    server = Server(store)
    late = LateTracking(store, server.send)
    for run in ("a-1", "a-2", "b-1", "c-1"):
        late.add(run)
    late.send_once()
    assert server.asked == ["a-1", "b-1"], "the server of a-2 does not answer, and c-1 runs"
    server.away = set()
    late.send_once()
    assert server.asked[2:] == ["a-1", "a-2"]
    late.send_once()
    assert len(server.asked) == 4


def test_a_resumed_or_deleted_run_is_left_alone(store: RunStore) -> None:
    server = Server(store)
    server.away, server.deleted = set(), {"a-1"}
    late = LateTracking(store, server.send)
    for run in ("a-1", "a-2"):
        late.add(run)
    late.drop("a-2")
    late.send_once()
    late.send_once()
    assert server.asked == ["a-1"]
