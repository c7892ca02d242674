"""The agent of one node: a Ray actor that owns the fork server and, through it, the node's rank processes.

It outlives rank processes and the coordinator. It makes no decisions: it starts and ends generations on request, and
reports its observations as a numbered list of events that the coordinator reads by long polls.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

from drivetrain_workers.agent.event_log import EventLog, LoggedEvent
from drivetrain_workers.agent.hang_watch import HangReporter
from drivetrain_workers.agent.node import AgentNode, RayNode
from drivetrain_workers.agent.peers import CopyPiece, StoredCopy
from drivetrain_workers.agent.rank_supervisor import Link, RankSupervisor
from drivetrain_workers.model_processes.requests import Request, run_request
from drivetrain_workers.protocol.events import CheckpointCommitted, CopyMade, NodeMeasured
from drivetrain_workers.protocol.messages import (
    HEARTBEAT_INTERVAL_S,
    Address,
    AgentSnapshot,
    AgentTask,
    Generation,
    Message,
    RankTask,
)
from drivetrain_workers.records.run_folder import CheckpointId, RunFolder

_MEASURE_INTERVAL_S = 5.0
_LEASE_CHECK_INTERVAL_S = 0.5


class NodeAgent:
    """Ray actor with several threads. Every public method may be called at any time.

    Args:
        task: see `AgentTask`.
        node: the node of the agent; a `RayNode` by default.
    """

    def __init__(self, task: AgentTask, node: AgentNode | None = None) -> None:
        folder = RunFolder(Path(task.run_folder))
        job = folder.train_job()
        self._task, self._node = task, node or RayNode(task, job)
        self._name = f"{platform.node()}-{task.first_rank}"
        self._lease_renewed = self._node.now()
        self._log = EventLog()
        ranks = range(task.first_rank, task.first_rank + task.ranks)
        limit = job.training.hang_timeout_s
        hang_timeout_s = None if limit == "auto" else limit
        self._ranks = RankSupervisor(
            self._task_of, ranks, self._log.append, hang_timeout_s, self._node.delay, self._node.now
        )
        self._hangs = HangReporter(self._ranks, self._log.append, folder.log(task.first_rank).parent)
        self._peers = self._node.open_peer_copies()
        self._uploader = self._node.start_uploader(self._log.append)
        self._fork_server = self._node.start_fork_server(self._receive)
        if task.first_rank == 0:  # one agent of the gang starts them for all
            self._transformers = self._node.start_transformers()
        self._read_meter = self._node.start_meter()
        self._node.every(HEARTBEAT_INTERVAL_S, self._hangs.check)
        self._node.every(_MEASURE_INTERVAL_S, self._measure)
        self._node.every(_LEASE_CHECK_INTERVAL_S, self._check_lease)

    def address(self) -> Address:
        """Return an IP address and a free TCP port for a rendezvous."""
        self._renew_lease()
        return self._node.address()

    def start(self, generation: Generation) -> None:
        """End all ranks of older generations, then fork the ranks of this one. A second call has no effect."""
        self._renew_lease()
        if self._peers:
            self._peers.recover(range(self._task.first_rank, self._task.first_rank + self._task.ranks))
        self._ranks.start(generation)

    def stop(self) -> None:
        """Kill the ranks of this node."""
        self._renew_lease()
        self._ranks.stop()

    def request_stop(self) -> None:
        """Ask the ranks to save a checkpoint after the current step and to exit."""
        self._renew_lease()
        self._ranks.request_stop()

    def events(self, since: int, timeout_s: float) -> list[LoggedEvent]:
        """Return the events from number ``since`` on; wait up to ``timeout_s`` for the first."""
        self._renew_lease()
        return self._log.read(since, timeout_s)

    def snapshot(self) -> AgentSnapshot:
        """Return process ids and the generation."""
        self._renew_lease()
        return AgentSnapshot(os.getpid(), self._fork_server.pid, self._ranks.generation, self._ranks.pids)

    def run_request(self, request: Request) -> str:
        """Answer a request about the newest checkpoint, on this node; see `requests.run_request`."""
        self._renew_lease()
        return run_request(request)

    def receive_copy(self, piece: CopyPiece) -> None:
        """See `PeerCopies.receive`."""
        if self._peers:
            self._peers.receive(piece)

    def newest_copy(self, rank: int) -> StoredCopy | None:
        """See `PeerCopies.newest`."""
        return self._peers.newest(rank) if self._peers else None

    def read_copy(self, checkpoint: CheckpointId, rank: int, offset: int) -> bytes:
        """See `PeerCopies.read`."""
        return self._peers.read(checkpoint, rank, offset) if self._peers else b""

    def remove_copies(self) -> None:
        """Release the memory of a run that has ended. Ranks that still write to it are ended first."""
        self._ranks.stop()
        if self._peers:
            self._peers.close()
        self._node.remove_copies()

    def finish_uploads(self, timeout_s: float) -> bool:
        """Wait until storage has every checkpoint that it should have; return False after ``timeout_s``."""
        self._renew_lease()
        return self._uploader is None or self._uploader.finish(timeout_s)

    def _task_of(self, rank: int, generation: Generation) -> RankTask:
        task, memory = self._task, str(self._node.memory_folder)
        numbers = (rank, rank - task.first_rank, task.ranks)
        endpoint = self._fork_server.endpoint
        return RankTask(endpoint, *numbers, generation, task.run_folder, task.dataset_folder, memory)

    def _receive(self, message: Message, link: Link) -> None:
        match message:
            case CopyMade(source, step):
                if self._peers:
                    self._peers.send(CheckpointId(step, source.generation), source.rank)
                return
            case CheckpointCommitted() if self._uploader:
                self._uploader.wake()
        self._ranks.receive(message, link)

    def _measure(self) -> None:
        """Report the load of the node and the energy that the run has used."""
        reading = self._read_meter()
        measured = {**reading.values, "energy_joules": reading.energy_j}
        values = {f"system/{self._name}/{name}": value for name, value in measured.items()}
        self._log.append(NodeMeasured(self._name, values, reading.energy_from))

    def _check_lease(self) -> None:
        """End this agent when the lease expires or the fork server has ended."""
        if self._node.now() - self._lease_renewed >= self._task.lease_s or not self._fork_server.is_alive:
            self._fork_server.kill()
            self._node.exit()

    def _renew_lease(self) -> None:
        self._lease_renewed = self._node.now()
