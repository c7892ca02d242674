"""The node and Ray as an agent uses them: processes, memory, storage, measurements, time."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, Protocol

import ray
import ray.util
from drivetrain_pipelines.actors.ray_failures import in_words
from drivetrain_pipelines.errors import DrivetrainError
from drivetrain_pipelines.online.actor import start_transformers

from drivetrain_workers.agent.fork_server_process import ForkServerProcess
from drivetrain_workers.agent.node_meter import NodeMeter, Reading
from drivetrain_workers.agent.peers import CopyPiece, PeerCopies, StoredCopy
from drivetrain_workers.agent.rank_supervisor import Link
from drivetrain_workers.checkpoints.memory_copies import (
    MemoryCopies,
    acquire_memory_folder,
    memory_folder,
    remove_memory_folder,
    remove_orphans,
)
from drivetrain_workers.checkpoints.remote import RemoteCheckpoints
from drivetrain_workers.checkpoints.upload import Uploader
from drivetrain_workers.protocol.events import AgentEvent, CheckpointUploaded, ProblemFound
from drivetrain_workers.protocol.messages import Address, AgentTask, Endpoint, Message
from drivetrain_workers.protocol.processes import lower_priority
from drivetrain_workers.records.run_folder import CheckpointId, RunFolder
from drivetrain_workers.spec import TrainJob

_FETCH_TIMEOUT_S = 60.0  # for one chunk; a slower copy is not used, storage has another


class ForkServer(Protocol):
    """The fork server of an agent; see `ForkServerProcess`."""

    @property
    def endpoint(self) -> Endpoint:
        """Endpoint at which ranks connect to the agent."""

    @property
    def pid(self) -> int:
        """Process id."""

    @property
    def is_alive(self) -> bool:
        """Whether the process is running."""

    def kill(self) -> None:
        """End the process, and its ranks with it."""


class AgentNode(Protocol):
    """The node of an agent: `RayNode` in production, a simulated one in tests."""

    @property
    def memory_folder(self) -> Path:
        """Folder in the node's memory for copies of the ranks' states."""

    def start_fork_server(self, on_message: Callable[[Message, Link], None]) -> ForkServer:
        """Start the fork server; ``on_message`` receives the messages of it and of the ranks."""

    def start_transformers(self) -> list[Any]:
        """Start the actors of the job's online transform, if it has one; they end with their handles."""

    def open_peer_copies(self) -> PeerCopies | None:
        """Open this node's memory for copies of checkpoints, if the job uses them and there is a peer."""

    def start_uploader(self, report: Callable[[AgentEvent], None]) -> Uploader | None:
        """Start to upload checkpoints, if the job has a location for them outside the run's folder."""

    def start_meter(self) -> Callable[[], Reading]:
        """Start to measure. The returned function returns the measurements since its last call."""

    def address(self) -> Address:
        """Return an address of this node with a free TCP port."""

    def now(self) -> float:
        """Return monotonic seconds."""

    def every(self, seconds: float, work: Callable[[], None]) -> None:
        """Call ``work`` repeatedly, in a thread."""

    def delay(self, seconds: float, work: Callable[[], None]) -> None:
        """Call ``work`` once after a delay, in a thread."""

    def remove_copies(self) -> None:
        """Remove all copies from the node's memory."""

    def exit(self) -> NoReturn:
        """End the agent."""


class PeerLostError(DrivetrainError):
    """The agent that keeps copies for this one is dead or does not answer."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(name, detail)
        self.name, self.detail = name, detail

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}"


class RayPeer:
    """Another agent; see `Peer`.

    Args:
        name: name of its actor.

    Raises:
        PeerLostError: there is no such actor.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        try:
            self._actor: Any = ray.get_actor(name)
        except ValueError as error:
            raise PeerLostError(name, "there is no such agent") from error

    def newest_copy(self, rank: int) -> StoredCopy | None:
        """See `Peer`."""
        found: StoredCopy | None = self._get(self._actor.newest_copy.remote(rank))
        return found

    def read_copy(self, checkpoint: CheckpointId, rank: int, offset: int) -> bytes:
        """See `Peer`."""
        chunk: bytes = self._get(self._actor.read_copy.remote(checkpoint, rank, offset))
        return chunk

    def receive_copy(self, piece: CopyPiece) -> None:
        """See `Peer`."""
        self._get(self._actor.receive_copy.remote(piece))

    def _get(self, call: Any) -> Any:
        try:
            return ray.get(call, timeout=_FETCH_TIMEOUT_S)
        except ray.exceptions.RayError as error:
            raise PeerLostError(self._name, in_words(error)) from error


class RayNode:
    """The node on which a Ray actor runs.

    Args:
        task: task of the agent.
        job: job of the run.
    """

    def __init__(self, task: AgentTask, job: TrainJob) -> None:
        self._task, self._job, self._folder = task, job, RunFolder(Path(task.run_folder))
        self.memory_folder = memory_folder(self._folder.path.name, task.first_rank)

    def start_fork_server(self, on_message: Callable[[Message, Link], None]) -> ForkServerProcess:
        """See `AgentNode`."""
        first = self._task.first_rank
        log = self._folder.log(first).with_name(f"agent-{first}.log")
        server = ForkServerProcess(self._task.threads, bool(self._task.gpus), log, on_message)
        lower_priority()  # after the fork server, because its children must keep their priority
        return server

    def start_transformers(self) -> list[Any]:
        """See `AgentNode`. If CPUs are short, the actors share those of the ranks."""
        if self._job.data.online is None:
            return []
        free: float = ray.available_resources().get("CPU", 0)  # type: ignore[no-untyped-call]  # Ray's
        cpus = int(self._job.data.online.actors <= free)
        where = (self._folder.online, cpus, self._task.several_nodes)
        return start_transformers(*where, self._task.dataset_folder, self._job.data, self._job.seed, self._folder.code)

    def open_peer_copies(self) -> PeerCopies | None:
        """See `AgentNode`."""
        remove_orphans(self.memory_folder, time.time())
        if not self._job.checkpoint.memory_every:
            return None
        self._memory_lock = acquire_memory_folder(self.memory_folder)
        if not self._task.successor:
            return None
        peers = PeerCopies(MemoryCopies(self.memory_folder), lambda: RayPeer(self._task.successor))
        peers.start()
        return peers

    def start_uploader(self, report: Callable[[AgentEvent], None]) -> Uploader | None:
        """See `AgentNode`. One agent of the gang uploads for all."""
        if self._task.first_rank != 0 or not self._job.checkpoint.location:
            return None
        remote = RemoteCheckpoints(self._folder, self._job.checkpoint)
        uploader = Uploader(
            remote,
            lambda checkpoint: report(CheckpointUploaded(remote.url(checkpoint))),
            lambda problem: report(ProblemFound(problem)),
        )
        uploader.wake()  # for checkpoints that a previous agent did not upload
        return uploader

    def start_meter(self) -> Callable[[], Reading]:
        """See `AgentNode`."""
        gpus = [str(gpu) for gpu in ray.get_gpu_ids()] if self._task.gpus else []
        return NodeMeter(gpus, self._folder.path).read

    def address(self) -> Address:
        """See `AgentNode`."""
        ip: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # Ray's
        with socket.socket() as probe:
            probe.bind(("", 0))
            return Address(ip, probe.getsockname()[1])

    def now(self) -> float:
        """See `AgentNode`."""
        return time.monotonic()

    def every(self, seconds: float, work: Callable[[], None]) -> None:
        """See `AgentNode`."""

        def loop() -> None:
            while True:
                time.sleep(seconds)
                work()

        threading.Thread(target=loop, name=getattr(work, "__name__", "agent"), daemon=True).start()

    def delay(self, seconds: float, work: Callable[[], None]) -> None:
        """See `AgentNode`."""
        timer = threading.Timer(seconds, work)
        timer.daemon = True
        timer.start()

    def remove_copies(self) -> None:
        """See `AgentNode`."""
        remove_memory_folder(self.memory_folder)

    def exit(self) -> NoReturn:
        """See `AgentNode`."""
        os._exit(1)
