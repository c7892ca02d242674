"""The agent of one node: a Ray actor that owns the fork server and through it the node's rank processes.

It outlives rank processes and the coordinator. It decides nothing: it starts and ends generations when told, and
reports what it sees as a numbered list of events that the coordinator reads by long polls.
"""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import fields
from itertools import takewhile
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import ray
import ray.util
from drivetrain_pipelines.online.actor import start_transformers
from drivetrain_pipelines.spec import DataSpec

from drivetrain_workers.agent.hang_watch import Watch, is_stopped, stack_of, waits_for_peers
from drivetrain_workers.agent.node_meter import NodeMeter
from drivetrain_workers.agent.peers import PeerCopies
from drivetrain_workers.checkpoints.memory_copies import (
    MemoryCopies,
    memory_folder,
    own_memory_folder,
    remove_memory_folder,
    remove_orphans,
)
from drivetrain_workers.checkpoints.remote import RemoteCheckpoints
from drivetrain_workers.checkpoints.upload import Uploader
from drivetrain_workers.model_processes.requests import Request, ask
from drivetrain_workers.protocol.messages import BEAT_S, Beat, Endpoint, Event, Generation, RankTask, receive, send
from drivetrain_workers.protocol.processes import yield_to_training
from drivetrain_workers.records.run_folder import CheckpointId, RunFolder
from drivetrain_workers.spec import CheckpointSpec

_GRACE_S = 0.3  # so that a cause comes before its consequences
_ROUTINE = ("step", "system")  # told together: a call for each would cost ranks of short steps their cores
_GATHER_S = 1.0
_MEASURE_S = 5.0
_OTHERS_FIRST_S = 2.0
_BEAT = [field.name for field in fields(Beat)]
_KEPT_EVENTS = 10_000  # for a coordinator that was restarted; what it had read of older ones is in its records

# On CPUs a step's activations would go back to the kernel and be faulted in again in every step: a tenth of its time.
KEEP_FREED_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 62)}  # glibc's mallopt(3)


class NodeAgent:
    """Runs as a Ray actor with several threads; every public method is safe to call at any time.

    Args:
        run_folder: of the run, reachable from this node.
        dataset_folder: prepared dataset version.
        first_rank: rank of this node's first process.
        ranks: processes on this node, one per device.
        threads: CPU threads per rank.
        gpus: GPUs per rank; with none, GPUs that the node may have are hidden.
        lease_s: with no call for so long the agent ends itself and its ranks.
        several_nodes: whether the run may use more than this node.
        successor: name of the agent that keeps copies of this node's memory; none where this is the only one.
    """

    def __init__(
        self,
        run_folder: str,
        dataset_folder: str,
        first_rank: int,
        ranks: int,
        threads: int,
        gpus: int,
        lease_s: float,
        several_nodes: bool,
        successor: str,
    ) -> None:
        self._run_folder, self._dataset_folder = run_folder, dataset_folder
        self._gpus = gpus
        self._job = RunFolder(Path(run_folder)).resolved()
        hang_after: float | str = self._job["training"].get("hang_after_s", "auto")
        self._hang_after_s = None if isinstance(hang_after, str) else float(hang_after)
        self._ranks = range(first_rank, first_rank + ranks)
        self._lease_s, self._last_call = lease_s, time.monotonic()
        self._node = f"{platform.node()}-{first_rank}"
        self._generation: Generation | None = None
        self._events: deque[Event] = deque(maxlen=_KEPT_EVENTS)
        self._recorded = 0  # events so far: the number of the next one
        self._news = threading.Condition()
        self._links: dict[int, Connection[Any, Any]] = {}  # by rank, of the current generation
        self._pids: dict[int, int] = {}  # by rank, of the current generation
        self._errors: dict[tuple[int, int], Event] = {}  # by generation and rank
        self._watch = Watch()  # over the current generation
        self._server_link: Connection[Any, Any] | None = None
        self._unconfirmed_ends = 0
        self._endpoint = Endpoint.create()
        self._listener = self._endpoint.listen()
        self._fork_server = self._start_fork_server(threads)
        if first_rank == 0:  # one agent of the gang starts them for all; they end with it
            self._transformers = self._start_transformers(several_nodes)
        self._memory_folder = memory_folder(Path(run_folder).name, first_rank)
        self._peers = self._own_memory(successor)
        self._uploader = self._start_uploader() if first_rank == 0 else None
        yield_to_training()  # after the fork server, whose children are to be served first
        self._meter = NodeMeter([str(gpu) for gpu in ray.get_gpu_ids()] if gpus else [], Path(run_folder))
        for loop in (self._accept, self._guard, self._look_for_hangs, self._measure):
            threading.Thread(target=loop, name=loop.__name__, daemon=True).start()

    def address(self) -> dict[str, Any]:
        """IP address and a free TCP port, for a rendezvous."""
        self._called()
        ip: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # Ray's
        with socket.socket() as probe:
            probe.bind(("", 0))
            return {"ip": ip, "port": probe.getsockname()[1]}

    def start(self, generation: Generation) -> None:
        """End all ranks of older generations, then fork this one's. Telling twice changes nothing."""
        self._called()
        if self._peers:
            self._peers.recover(self._ranks)
        with self._news:
            while self._server_link is None:
                self._news.wait()
            if self._generation and self._generation.number >= generation.number:
                return
            self._watch = Watch(self._hang_after_s)
            self._generation = generation  # before the lock is let go of in waiting: a second call must see it
            self._end_ranks()
            if self._generation.number != generation.number:
                return  # overtaken by a newer one
            folders = self._run_folder, self._dataset_folder, str(self._memory_folder)
            for local_rank, rank in enumerate(self._ranks):
                task = RankTask(self._endpoint, rank, local_rank, len(self._ranks), generation, *folders)
                request = {"type": "fork", "entry": "drivetrain_workers.rank.main:main", "task": task.to_json()}
                send(self._server_link, {**request, "rank": rank, "generation": generation.number})

    def stop(self) -> None:
        """Kill this node's ranks now."""
        self._called()
        with self._news:
            self._end_ranks()

    def ask_stop(self) -> None:
        """Ask the ranks to save a checkpoint after the current step and end."""
        self._called()
        with self._news:
            for link in self._links.values():
                with suppress(OSError):  # a rank that just died is reported by its exit
                    send(link, {"type": "stop"})

    def events(self, since: int, timeout_s: float) -> list[Event]:
        """Events from number ``since`` on, each with its ``number``; waits up to ``timeout_s`` for the first."""
        self._called()
        with self._news:
            if self._news.wait_for(lambda: self._recorded > since, timeout_s):
                self._news.wait_for(lambda: any(e["type"] not in _ROUTINE for e in self._since(since)), _GATHER_S)
            return self._since(since)

    def snapshot(self) -> dict[str, Any]:
        """Process ids and the generation, for people and for tests."""
        self._called()
        with self._news:
            number = self._generation.number if self._generation else 0
            return {
                "pid": os.getpid(),
                "fork_server": self._fork_server.pid,
                "generation": number,
                "ranks": dict(self._pids),
            }

    def ask(self, request: Request) -> str:
        """See `drivetrain_workers.model_processes.requests.ask`; of the newest checkpoint, on this node."""
        self._called()
        return ask(request)

    def receive_copy(
        self, step: int, generation: int, rank: int, offset: int, chunk: bytes, index: dict[str, Any]
    ) -> None:
        """See `PeerCopies.receive`."""
        if self._peers:
            self._peers.receive(step, generation, rank, offset, chunk, index)

    def newest_copy(self, rank: int) -> tuple[int, int, dict[str, Any]] | None:
        """See `PeerCopies.newest`."""
        return self._peers.newest(rank) if self._peers else None

    def read_copy(self, step: int, generation: int, rank: int, offset: int) -> bytes:
        """See `PeerCopies.read`."""
        return self._peers.read(step, generation, rank, offset) if self._peers else b""

    def forget_copies(self) -> None:
        """The run has ended: give its memory back. Whoever still writes there ends first."""
        with self._news:
            self._end_ranks()
        if self._peers:
            self._peers.close()
        remove_memory_folder(self._memory_folder)

    def finish_uploads(self, timeout_s: float) -> bool:
        """Wait until storage has every checkpoint that it should; False when it has not, after ``timeout_s``."""
        self._called()
        return self._uploader is None or self._uploader.finish(timeout_s)

    def _start_transformers(self, several_nodes: bool) -> list[Any]:
        """The actors of the job's online transform, if it has one. Where CPUs are short they share the ranks'."""
        folder = RunFolder(Path(self._run_folder))
        data = DataSpec(**self._job["data"])
        if data.online is None:
            return []
        free: float = ray.available_resources().get("CPU", 0)  # type: ignore[no-untyped-call]  # Ray's
        cpus = int(data.online.actors <= free)
        place = (folder.online, cpus, several_nodes)
        return start_transformers(*place, self._dataset_folder, data, self._job["seed"], folder.code)

    def _own_memory(self, successor: str) -> PeerCopies | None:
        """Room for copies in this node's memory, and a peer for them where there is one, if the job wants them."""
        remove_orphans(self._memory_folder)
        if not CheckpointSpec(**self._job["checkpoint"]).memory_every:
            return None
        self._memory_lock = own_memory_folder(self._memory_folder)
        if not successor:
            return None
        return PeerCopies(MemoryCopies(self._memory_folder), successor)

    def _start_uploader(self) -> Uploader | None:
        """Where the job has a place for checkpoints besides the run's folder."""
        spec, folder = CheckpointSpec(**self._job["checkpoint"]), RunFolder(Path(self._run_folder))
        if not spec.location:
            return None
        remote = RemoteCheckpoints(folder, spec)
        uploader = Uploader(
            remote,
            lambda checkpoint: self._append({"type": "uploaded", "url": remote.url(checkpoint)}),
            lambda problem: self._append({"type": "warning", "message": problem}),
        )
        uploader.wake()  # for what an agent before this one has left
        return uploader

    def _start_fork_server(self, threads: int) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "DRIVETRAIN_AGENT": self._endpoint.name,
            "DRIVETRAIN_AGENT_KEY": self._endpoint.key,
        }
        if not self._gpus:
            environment = {**KEEP_FREED_MEMORY, **environment, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        log = RunFolder(Path(self._run_folder)).log(self._ranks.start).with_name(f"agent-{self._ranks.start}.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "drivetrain_workers.agent.fork_server"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()
            except (AuthenticationError, EOFError, ConnectionError):
                continue  # not one of ours
            threading.Thread(target=self._listen, args=(connection,), daemon=True).start()

    def _listen(self, connection: Connection[Any, Any]) -> None:
        """Record everything that one fork server or rank says."""
        with suppress(EOFError, OSError):  # its exit is reported by the fork server
            while True:
                event = receive(connection)
                with self._news:
                    self._record(event, connection)

    def _record(self, event: Event, connection: Connection[Any, Any]) -> None:
        current = self._generation is not None and event.get("generation") == self._generation.number
        if event["type"] == "warm":
            self._server_link = connection
        elif event["type"] == "ended":
            self._unconfirmed_ends -= 1
            self._news.notify_all()
            return
        elif event["type"] == "beat":
            if current:
                self._watch.heard(event["rank"], Beat(**{key: event[key] for key in _BEAT}), time.monotonic())
            return
        elif event["type"] == "forked" and current:
            self._pids[event["rank"]] = event["pid"]
        elif event["type"] == "phase" and current:
            self._links[event["rank"]] = connection
        elif event["type"] == "error":
            self._errors[event["generation"], event["rank"]] = event
        elif event["type"] == "exited":
            self._exited(event)
            return
        elif event["type"] == "checkpoint" and self._uploader:
            self._uploader.wake()
        elif event["type"] == "copied":
            if self._peers:
                self._peers.send(CheckpointId(event["step"], event["generation"]), event["rank"])
            return
        self._append(event)

    def _exited(self, event: Event) -> None:
        """A rank process ended. Its pid is gone whatever the reason; a generation that was ended has nothing to say."""
        if self._generation is None or event["generation"] != self._generation.number:
            return
        self._pids.pop(event["rank"], None)
        error = self._errors.get((event["generation"], event["rank"]))
        if event["code"] <= 0 or (error and error["kind"] != "collective"):
            self._report_exit(event)
        else:  # it only lost its peer, or its own words are still on their way from another socket
            timer = threading.Timer(_GRACE_S, self._report_exit, [event])
            timer.daemon = True
            timer.start()

    def _report_exit(self, event: Event) -> None:
        with self._news:
            error = self._errors.get((event["generation"], event["rank"]), {})
            self._append(event | {key: error[key] for key in ("kind", "message", "traceback") if key in error})

    def _measure(self) -> None:
        """Report what the node is busy with, and what energy it takes."""
        while True:
            time.sleep(_MEASURE_S)
            reading = self._meter.read()
            measured = {**reading.values, "energy_joules": reading.energy_j}
            values = {f"system/{self._node}/{name}": value for name, value in measured.items()}
            with self._news:
                self._append({"type": "system", "node": self._node, "values": values, "from": reading.energy_from})

    def _look_for_hangs(self) -> None:
        """Report a generation that makes no progress, once."""
        reported = 0
        while True:
            time.sleep(BEAT_S)
            with self._news:
                for rank, pid in self._pids.items():
                    self._watch.state(rank, is_stopped(pid), time.monotonic())
                number = self._generation.number if self._generation else 0
                late = [] if number == reported else self._watch.late(time.monotonic())
                pids = dict(self._pids)
            if late and late[0] in pids:
                reported = number
                self._report_hang(number, late, pids)

    def _report_hang(self, number: int, late: list[int], pids: dict[int, int]) -> None:
        """Name the rank that the others wait for, and keep what all of them were doing."""
        stacks = {rank: stack_of(pid) for rank, pid in pids.items()}
        guilty = next((rank for rank in late if not waits_for_peers(stacks[rank])), late[0])
        if waits_for_peers(stacks[guilty]):
            time.sleep(_OTHERS_FIRST_S)  # the one that they wait for may be another node's, whose agent names it
        now = time.monotonic()
        with self._news:
            where = {rank: self._watch.describe(rank, now) for rank in late}
        log = RunFolder(Path(self._run_folder)).log(guilty).with_name(f"hang-{number}-ranks-{self._ranks.start}.txt")
        lines = [f"rank {rank}\n" + "".join(f"  {frame}\n" for frame in stack) for rank, stack in stacks.items()]
        log.write_text("\n".join(lines))
        doing = f", in {stacks[guilty][0]}" if stacks[guilty] else ""
        message = f"rank {guilty} makes no progress: {where[guilty]}{doing}; all stacks are in {log}"
        self._append({"type": "hung", "rank": guilty, "generation": number, "message": message})

    def _append(self, event: Event) -> None:
        with self._news:
            self._events.append({"number": self._recorded, "time": time.time(), **event})
            self._recorded += 1
            self._news.notify_all()

    def _since(self, number: int) -> list[Event]:
        newer = takewhile(lambda event: event["number"] >= number, reversed(self._events))
        return list(newer)[::-1]

    def _end_ranks(self) -> None:
        """Have the fork server kill every rank, those included whose fork is still in its queue, and wait for it."""
        self._pids.clear()
        self._links.clear()
        if self._server_link is None:
            return
        self._unconfirmed_ends += 1
        send(self._server_link, {"type": "end"})
        self._news.wait_for(lambda: not self._unconfirmed_ends)

    def _called(self) -> None:
        self._last_call = time.monotonic()

    def _guard(self) -> None:
        """End with the lease, and with the fork server, without which this agent is of no use.

        The kernel ends ranks with the fork server, their parent.
        """
        while time.monotonic() - self._last_call < self._lease_s and self._fork_server.poll() is None:
            time.sleep(0.5)
        self._fork_server.kill()
        os._exit(1)
