"""The server's application for a home, with a session that needs no Ray, for tests."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any, cast

from drivetrain.accounting.run_account import RunAccountCache
from drivetrain.api.session import Session, require_same_job
from drivetrain.home import Home
from drivetrain.job.loading import Job
from drivetrain.job.provenance import GitState
from drivetrain.runs.states import Ended, Queued
from drivetrain.runs.store import RunRecord, RunStore
from drivetrain.runs.view import RunView
from drivetrain.scheduling.model import Request
from drivetrain.scheduling.status import ClusterStatus, NodeStatus, QueueEntry
from drivetrain.server.access import Role, Tokens
from drivetrain.server.app import create_app
from drivetrain.server.dependencies import Parts
from drivetrain_workers.protocol.reasons import Reason
from fastapi.testclient import TestClient

from tests.unit.runs import make_run

CLUSTER = ClusterStatus(
    nodes=(
        NodeStatus("a" * 20, "10.0.0.1", 8.0, 1.0, False, 0.0, {"toy-1": 2}, cpus_used=2.0, gpus_used=1.0),
        NodeStatus("b" * 20, "10.0.0.2", 8.0, 0.0, True, 0.0),
        NodeStatus("c" * 20, "10.0.0.3", 4.0, 0.0, True, 2e9),
    ),
    queue=(
        QueueEntry(Request("toy-2", "bob", "default", 5, 10.0, 2, 1, 1.0, 0.0), "an allocation", "no room"),
        QueueEntry(Request("toy-3", "ann", "default", 0, 20.0, 4, 4, 1.0, 0.0, 60.0), "data preparation"),
    ),
    usage={"ann": 0.5},
)


class LocalSession:
    """The effects of a session on the records of a home, without a coordinator.

    Attributes:
        views: by run; by default derived from the record.
    """

    def __init__(self, home: Home) -> None:
        self._home, self._store = home, RunStore(home.database_url)
        self.views: dict[str, RunView] = {}
        self.git: list[GitState | None] = []

    def submit(self, job: Job, user: str, key: str | None = None, git: GitState | None = None) -> RunRecord:
        self.git.append(git)
        if key and (known := self._store.by_key(user, key)):
            require_same_job(known, job, self._home.run(known.id))
            return known
        run = f"{job.spec.name}-{secrets.token_hex(3)}"
        folder = make_run(self._home, run, job.spec, user, job.fingerprint, key=key)
        (folder.path / "code_version").write_text(job.code_version)
        return self._store.get(run)

    def view(self, run_id: str, known_version: int = -1, timeout_s: float = 0.0) -> RunView:
        record = self._store.get(run_id)
        return self.views.get(record.id) or RunView(record.id, record.state.phase, 1, facts=record.facts)

    def cluster(self) -> ClusterStatus:
        return CLUSTER

    def cancel(self, run_id: str) -> None:
        self._store.save(run_id, Ended(Reason.CANCELLED), "asked by the user")
        self._store.update_facts(run_id, reason=str(Reason.CANCELLED), released=True)

    def resume(self, run_id: str) -> RunRecord:
        self._store.save(run_id, Queued(), "resumed by the user")
        self._store.update_facts(run_id, reason="", released=False)
        return self._store.get(run_id)

    def retry(self, run_id: str, user: str) -> RunRecord:
        make_run(self._home, f"{run_id}-again", user=user)
        return self._store.get(f"{run_id}-again")


class Server:
    """The application for a home, and its callers."""

    def __init__(self, home: Home) -> None:
        self.home, self.store, self.tokens = home, RunStore(home.database_url), Tokens(home.database_url)
        self.session = LocalSession(home)
        session = cast("Session", self.session)
        self.parts = Parts(session, self.store, self.tokens, home, RunAccountCache(home, self.store))
        self.app = create_app(self.parts)

    def headers(self, user: str, role: Role = Role.USER) -> dict[str, str]:
        """Return the headers of a caller with a new token."""
        return {"Authorization": f"Bearer {self.tokens.create(user, role)[0]}"}

    def client(self, user: str, role: Role = Role.USER, path: str = "/v1", **options: Any) -> TestClient:
        """A client of a user with a new token."""
        return TestClient(self.app, f"http://testserver{path}", headers=self.headers(user, role), **options)

    def log_line(self, run: str, rank: int, text: str) -> Path:
        """Append to the output of a rank."""
        path = self.home.run(run).log(rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(text)
        return path
