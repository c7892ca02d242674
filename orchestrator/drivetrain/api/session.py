"""A session with the coordinator: join or start Ray, find the coordinator, submit runs, follow them."""

from __future__ import annotations

import hashlib
import secrets
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from drivetrain_pipelines.actors.ray_failures import in_words
from drivetrain_pipelines.errors import DrivetrainError, InputError
from drivetrain_pipelines.storage.json_files import atomic_write
from drivetrain_workers.protocol.reasons import Reason
from drivetrain_workers.records.run_folder import RunFolder
from tenacity import retry, retry_if_exception, stop_after_delay, wait_fixed

from drivetrain.cluster import ray_internals
from drivetrain.cluster.addresses import find_cluster, recorded
from drivetrain.cluster.connection import connect
from drivetrain.cluster.nodes import HEAD
from drivetrain.coordinator.wiring import RayCoordinator
from drivetrain.errors import ClusterError
from drivetrain.home import Home, user_name
from drivetrain.job.loading import Job
from drivetrain.job.provenance import GitState, load_git_state, save_environment
from drivetrain.job.snapshots import store_code, stored_code
from drivetrain.job.spec import flatten, stored_spec
from drivetrain.runs.states import Ended, Queued
from drivetrain.runs.store import RunRecord, RunStore
from drivetrain.runs.view import RunView
from drivetrain.scheduling.status import ClusterStatus

_VIEW_WAIT_S = 1.0
_CLOSING_S = 180.0
_ANSWER_TIMEOUT_S = 600.0  # of the coordinator, which waits minutes for a run that is closing, or for the database
_MAX_DIFFERENCES = 5  # settings in a message


def _coordinator_is_away(error: BaseException) -> bool:
    """Return whether the coordinator is dead. The death of an actor that it has called is a RayTaskError."""
    return isinstance(error, ray.exceptions.RayActorError) and not isinstance(error, ray.exceptions.RayTaskError)


_while_it_restarts = retry(
    retry=retry_if_exception(_coordinator_is_away), wait=wait_fixed(0.2), stop=stop_after_delay(60.0), reraise=True
)


class Session:
    """A connection to the coordinator of a Ray cluster."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._store = RunStore(home.database_url)
        self._coordinator = _coordinator(home)

    def run(self, job: Job) -> RunRecord:
        """Start a run of the job, or resume an interrupted run of the same job."""
        if interrupted := self._store.unended(fingerprint=job.fingerprint):
            return self.resume(interrupted[0].id)
        return self.submit(job, user_name())

    def submit(self, job: Job, user: str, key: str | None = None, git: GitState | None = None) -> RunRecord:
        """Start a run of the job for a user, or return the one that they have submitted with the same key.

        Args:
            git: what git knows of the code, where the job's folder is only a copy of it.

        Raises:
            InputError: the cluster can never run it, or its rules do not allow it; no run was created. Or the key
                belongs to a run of another job.
        """
        run_id = f"{job.spec.name}-{secrets.token_hex(3)}"
        if key and (known := self._store.by_key(user, key)):
            require_same_job(known, job, self._home.run(known.id))
            if not known.ended:  # its client may have died before the coordinator had it
                self._adopt(known.id)
            return known
        self._lay_out(run_id, job, git or GitState.of(job.folder))
        if not self._store.create(run_id, job.fingerprint, Queued(), user, key, mlflow_uri=self._home.mlflow_uri):
            shutil.rmtree(self._home.run(run_id).path)
            return self.submit(job, user, key, git)
        try:
            self._adopt(run_id, new=True)
        except InputError:
            self._store.delete(run_id)
            shutil.rmtree(self._home.run(run_id).path)
            raise
        return self._store.get(run_id)

    def retry(self, run_id: str, user: str) -> RunRecord:
        """Start a new run of the same job, from the code and the settings stored with the run."""
        folder = self._home.run(self._store.get(run_id).id)
        spec = stored_spec(folder)
        job = Job(folder.job_written.read_text(), spec, stored_code(folder))
        return self.submit(job, user, git=load_git_state(folder))

    def recover(self) -> list[str]:
        """Have the coordinator run every run that has not ended; return a line for each that cannot be recovered."""
        problems = []
        for record in self._store.unended():
            try:
                self._adopt(record.id)
            except DrivetrainError as error:
                problems.append(f"{record.id}: {error}")
        return problems

    def view(self, run_id: str, known_version: int = -1, timeout_s: float = 0.0) -> RunView:
        """Return the figures of a run when they are newer than ``known_version``, or after ``timeout_s``."""
        view: RunView = self._call("view", run_id, known_version, timeout_s)
        return view

    def cluster(self) -> ClusterStatus:
        """Return the nodes, the runs on them, and the queue."""
        found: ClusterStatus = self._call("cluster")
        return found

    def resume(self, run_id: str) -> RunRecord:
        """Resume a run that was interrupted, cancelled or has failed; a complete run stays as it is."""
        record = self._settled(run_id)
        if record.ended and record.facts.reason == Reason.COMPLETED:
            if record.facts.tracked:
                return record
            self._store.update_facts(
                record.id, released=False
            )  # closing it again sends what the tracking server has not received
        elif record.ended:
            self._store.update_facts(record.id, released=False)
            progress = replace(record.state.progress, failures={})  # the user wants another attempt
            self._store.save(record.id, Queued(progress=progress), "resumed by the user")
        self._adopt(record.id)
        return self._store.get(record.id)

    def _settled(self, run_id: str) -> RunRecord:
        """Return the record of a run; one that has ended releases its resources first."""
        record = self._store.get(run_id)
        if isinstance(record.state, Ended) and not record.ended:
            self._adopt(record.id)
            deadline = time.monotonic() + _CLOSING_S
            while not record.ended and time.monotonic() < deadline:
                time.sleep(0.2)
                record = self._store.get(run_id)
        return record

    def follow(self, run_id: str, cancelled: Callable[[], bool]) -> Iterator[RunView]:
        """Yield the views of a run, each newer than the one before, until it has ended.

        Args:
            cancelled: called once a second; when it first returns True, the run is cancelled.
        """
        version, asked = -1, False
        while True:
            if not asked and cancelled():
                self.cancel(run_id)
                asked = True
            view = self.view(run_id, version, _VIEW_WAIT_S)
            if view.version < version:  # the coordinator was restarted and counts from 0
                version = -1
            if view.version > version:
                version = view.version
                yield view
            if view.phase == "ended" and view.facts.released:
                return

    def cancel(self, run_id: str) -> None:
        """Ask a run to save a checkpoint and end."""
        self._call("cancel", run_id)

    def _adopt(self, run_id: str, new: bool = False) -> None:
        """Have the coordinator run a run, and record on which Ray cluster; see `session_of_run`."""
        self._call("adopt", run_id, new)
        with suppress(OSError), atomic_write(_address_file(self._home, run_id)) as sink:  # only `cancel` reads it
            sink.write(str(ray.get_runtime_context().gcs_address).encode())

    def _call(self, method: str, *arguments: Any) -> Any:
        """Call the coordinator, again while it restarts. Raises `ClusterError` and the errors of its methods."""
        try:
            return self._try(method, *arguments)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, DrivetrainError):
                raise error.cause from None
            raise ClusterError(f"the coordinator failed: {in_words(error)}") from error
        except ray.exceptions.RayError as error:
            raise ClusterError(f"the coordinator does not answer: {in_words(error)}") from error

    @_while_it_restarts
    def _try(self, method: str, *arguments: Any) -> Any:
        return ray.get(getattr(self._coordinator, method).remote(*arguments), timeout=_ANSWER_TIMEOUT_S)

    def _lay_out(self, run_id: str, job: Job, git: GitState) -> None:
        folder = self._home.run(run_id)
        store_code(job.code, folder)
        contents = {folder.job_written: job.written, folder.job_resolved: job.spec.model_dump_json(indent=2)}
        for path, text in contents.items():
            with atomic_write(path) as sink:
                sink.write(text.encode())
        save_environment(folder, git)


def require_same_job(known: RunRecord, job: Job, folder: RunFolder) -> None:
    """Check that a job is the one of a run, which was submitted with the same idempotency key.

    Raises:
        InputError: it is another job; with the settings that differ.
    """
    if known.fingerprint == job.fingerprint:
        return
    before, now = (flatten(spec.model_dump(mode="json")) for spec in (stored_spec(folder), job.spec))
    # Preparing resolves "auto" in the stored job.
    keys = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key) != "auto"]
    different = [f"{key}: {now.get(key)!r} instead of {before.get(key)!r}" for key in keys[:_MAX_DIFFERENCES]]
    if job.code_version != (folder.path / "code_version").read_text():
        different.append("its code")
    given = f"the key of {known.id}, for another job ({'; '.join(different) or 'its settings'})"
    raise InputError(
        "--idempotency-key", given, "a key for each job", f"`drivetrain status {known.id}` shows that run."
    )


@contextmanager
def open_session(address: str | None = None, shared: bool = False) -> Iterator[Session]:
    """Open a session on a Ray cluster. Args: see `connect`."""
    with connect(address, shared):
        yield Session(Home.from_environment())


@contextmanager
def session_of_run(run_id: str, address: str | None = None) -> Iterator[Session]:
    """Open a session on the Ray cluster that runs a local run. It starts no cluster.

    Args:
        run_id: of a run that has not ended.
        address: of the cluster; None takes the one on which the run was started, else the one of this machine.

    Raises:
        InputError: no Ray cluster runs it.
    """
    home = Home.from_environment()
    join = address or _cluster_of_run(home, run_id) or find_cluster(None, home.ray_address)
    if join is None:
        fix = f"`drivetrain resume {run_id}` continues it."
        raise InputError("RUN", f"{run_id}, which no Ray cluster on this machine runs", "a run that is running", fix)
    with open_session(join) as session:
        yield session


def _cluster_of_run(home: Home, run_id: str) -> str | None:
    """Return the address of the cluster on which a run was started, if it still runs."""
    found = recorded(_address_file(home, run_id))
    return found if found and ray_internals.ask(found).runs else None


def _address_file(home: Home, run_id: str) -> Path:
    return home.run(run_id).path / "ray-address"


def _coordinator(home: Home) -> Any:
    """Return the coordinator of this home's runs. It is created if there is none; Ray restarts it indefinitely."""
    actor = ray.remote(RayCoordinator).options(
        name=f"coordinator-{hashlib.sha256(str(home.path).encode()).hexdigest()[:8]}",
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        # On the head, because the cluster ends with it anyway: a partition cannot separate the two.
        resources={HEAD: 0.001},
        max_restarts=-1,
        max_task_retries=-1,  # every call may be repeated
        max_concurrency=256,  # every follower of a run occupies one
    )
    return actor.remote(home, uuid.uuid4().hex)
