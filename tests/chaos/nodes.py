"""Simulated nodes: real agents with fork servers and ranks that only send messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from drivetrain.cluster.protocols import AgentHandle, AgentLostError, NodesGoneError
from drivetrain.scheduling.model import Placement
from drivetrain_workers.agent.agent import NodeAgent
from drivetrain_workers.agent.event_log import LoggedEvent
from drivetrain_workers.agent.node_meter import Reading
from drivetrain_workers.agent.rank_supervisor import Link
from drivetrain_workers.model_processes.requests import Request
from drivetrain_workers.protocol import events as protocol
from drivetrain_workers.protocol.events import RankId
from drivetrain_workers.protocol.messages import (
    Address,
    AgentSnapshot,
    AgentTask,
    Endpoint,
    ForkRank,
    Generation,
    KillRanks,
    Message,
    RankTask,
    StopTraining,
)
from drivetrain_workers.protocol.reasons import Reason

if TYPE_CHECKING:
    from tests.chaos.world import World

_LEASE_S = 120.0


class BlockedError(BaseException):
    """A call would block; it is repeated later."""


class Rank:
    """A rank process as seen by its agent."""

    def __init__(self, server: ForkServer, task: RankTask, pid: int) -> None:
        self.server, self.task, self.pid, self.id = server, task, pid, task.id
        self.stop_asked = False
        self._arrives = 0.0

    @property
    def alive(self) -> bool:
        return self.server.ranks.get(self.id) is self

    def send(self, message: Message) -> None:
        """Receive a message from its agent."""
        if isinstance(message, StopTraining):
            self.stop_asked = True

    def report(self, event: protocol.AgentEvent) -> None:
        """Report over its own socket: in order, possibly after its end is known."""
        world = self.server.world
        self._arrives = max(self._arrives, world.now + (world.random.choice([0.0, 0.0, 0.5]) if not world.calm else 0))
        at = self._arrives - world.now
        if at <= 0:
            self.server.deliver(event, self)
        else:
            world.later(at, at, lambda: self.server.deliver(event, self))

    def beat(self) -> None:
        """Report regularly that it is alive, but rarely."""
        if self.alive:
            self.server.deliver(protocol.Heartbeat(self.id, protocol.Beat(0, "step", 1, 0.0, 0.0)), self)
            self.server.world.later(100, 200, self.beat)

    def exit(self, code: int, reason: Reason | None = None) -> None:
        """End: with a report of the error, unless it was killed."""
        if self.alive:
            if reason:
                self.report(protocol.RankFailed(self.id, reason, "it went wrong"))
            elif code == 0:
                self.report(protocol.RankDone(self.id))
            del self.server.ranks[self.id]
            self.server.deliver(protocol.RankExited(self.id, self.pid, code), self.server)


class ForkServer:
    """The fork server of an agent: see `drivetrain_workers.agent.node.ForkServer`."""

    def __init__(self, world: World, run: str, on_message: Callable[[Message, Link], None], wake: Any) -> None:
        self.world, self._run, self._on_message, self._wake = world, run, on_message, wake
        self.endpoint, self.pid, self.is_alive = Endpoint("simulated", "00"), world.next_pid(), True
        self.ranks: dict[RankId, Rank] = {}
        self.deliver(protocol.ForkServerReady(), self)

    def send(self, message: Message) -> None:
        """Receive a request from its agent."""
        if isinstance(message, ForkRank):
            self.world.later(0, 1, lambda: self._fork(message))
        elif isinstance(message, KillRanks):
            self.ranks.clear()
            self.deliver(protocol.RanksKilled(), self)

    def kill(self) -> None:
        self.is_alive = False
        self.ranks.clear()

    def deliver(self, message: Message, link: Link) -> None:
        if self.is_alive:
            self._on_message(message, link)
            self._wake()

    def _fork(self, request: ForkRank) -> None:
        task = RankTask.from_json(request.task)
        if not self.is_alive or task.generation.number < self.world.groups[self._run].newest(self):
            return  # it was killed while it was in the queue
        rank = Rank(self, task, self.world.next_pid())
        self.ranks[rank.id] = rank
        self.deliver(protocol.RankForked(rank.id, rank.pid), self)
        rank.beat()
        self.deliver(protocol.PhaseReached(rank.id, "forked"), rank)
        self.world.ranks_joined(self._run, task.generation)


class Node:
    """The node as seen by an agent: see `drivetrain_workers.agent.node.AgentNode`."""

    memory_folder = Path("/nowhere")

    def __init__(self, world: World, run: str, process: AgentProcess) -> None:
        self._world, self._run, self._process = world, run, process

    def start_fork_server(self, on_message: Callable[[Message, Link], None]) -> ForkServer:
        self._process.fork_server = ForkServer(self._world, self._run, on_message, self._process.wake)
        return self._process.fork_server

    def start_transformers(self) -> list[Any]:
        return []

    def open_peer_copies(self) -> None:
        return None

    def start_uploader(self, report: Any) -> None:
        return None

    def start_meter(self) -> Callable[[], Reading]:
        return lambda: Reading({}, 1.0, "estimate")

    def address(self) -> Address:
        return Address("10.0.0.1", 1)

    def now(self) -> float:
        return self._world.now

    def every(self, seconds: float, work: Callable[[], None]) -> None:
        """Call a periodic check, but rarely: its result does not change every second."""

        def again() -> None:
            if self._process.alive:
                work()
                self._process.wake()
                self._world.later(20, 40, again)

        self._world.later(20, 40, again)

    def delay(self, seconds: float, work: Callable[[], None]) -> None:
        def do() -> None:
            if self._process.alive:
                work()
                self._process.wake()

        self._world.later(seconds, seconds, do)

    def remove_copies(self) -> None:
        pass

    def exit(self) -> NoReturn:
        self._world.note(f"{self._run}: an agent ends with its lease")
        self._process.end()
        raise BlockedError


class AgentProcess:
    """The process of a real `NodeAgent`."""

    def __init__(self, world: World, run: str, node: str, index: int, task: AgentTask) -> None:
        self.world, self.run, self.node, self.index, self.ranks = world, run, node, index, task.ranks
        self.alive = True
        self.listeners: list[Any] = []
        self.pid = world.next_pid()
        self.fork_server: ForkServer
        self.agent = NodeAgent(task, Node(world, run, self))

    def end(self) -> None:
        if self.alive:
            self.alive = False
            self.fork_server.kill()
            self.wake()

    def wake(self) -> None:
        """Wake the long polls, which have something to return."""
        for listener in self.listeners:
            self.world.poll_soon(listener)


class Handle:
    """The connection from the coordinator to an agent; see `AgentHandle`. Calls are lost, delayed or fail."""

    def __init__(self, process: AgentProcess) -> None:
        self._process = process
        self.id, self.index, self.ranks = str(process.pid), process.index, process.ranks

    def address(self) -> Address:
        return self._agent.address()

    def start(self, generation: Generation) -> Callable[[], None]:
        self._process.world.perhaps_crash()
        self._agent.start(generation)
        return self._check

    def stop(self) -> None:
        self._send(self._process.agent.stop)

    def request_stop(self) -> None:
        self._send(self._process.agent.request_stop)

    def events(self, since: int, timeout_s: float) -> list[LoggedEvent]:
        if self._process.world.chance(0.0005):
            self._process.world.note(f"{self._process.run}: a connection is lost")
            self._process.world.jobs[self._process.run].faults += 1
            raise AgentLostError(self.index, "no answer")
        return self._agent.events(since, 0.0)

    def snapshot(self) -> AgentSnapshot:
        return self._agent.snapshot()

    def run_request(self, request: Request) -> str:
        raise NotImplementedError

    def finish_uploads(self, timeout_s: float) -> bool:
        return True

    @property
    def process(self) -> AgentProcess:
        return self._process

    @property
    def _agent(self) -> NodeAgent:
        self._check()
        return self._process.agent

    def _check(self) -> None:
        if not self._process.alive:
            raise AgentLostError(self.index, "its process is dead")

    def _send(self, call: Callable[[], None]) -> None:
        """Make a call without awaiting its result."""
        self._process.world.perhaps_crash()
        most = 0.1 if self._process.world.calm else 3.0
        self._process.world.later(0, most, lambda: call() if self._process.alive else None)


@dataclass
class Group:
    """A placement group with its agents."""

    placement: Placement
    cpus: float
    unfit: bool = False  # agents die there immediately
    agents: dict[str, AgentProcess] = field(default_factory=dict)  # by node

    @property
    def ranks(self) -> list[Rank]:
        return [rank for process in self.agents.values() for rank in process.fork_server.ranks.values()]

    def newest(self, server: ForkServer) -> int:
        """Return the newest generation of a fork server's agent."""
        owner = next((p for p in self.agents.values() if p.fork_server is server), None)
        return owner.agent.snapshot().generation if owner else 1 << 30


class Gang:
    """The agents of a run; see `drivetrain.cluster.protocols.Gang`."""

    def __init__(self, world: World, run: str, folder: Path) -> None:
        self._world, self._run, self._folder = world, run, folder

    def place(self, dataset: str, placement: Placement, wanted: Callable[[], bool]) -> list[AgentHandle]:
        world, cpus = self._world, self._world.jobs[self._run].request.cpus
        if gone := [node for node, _ in placement if node not in world.nodes]:
            raise NodesGoneError(gone)
        if not wanted():
            return []
        group = world.groups.get(self._run)
        if group is None:
            if any(ranks * cpus > world.free(node) for node, ranks in placement):
                assert world.now < 20_000, f"{self._run} waits indefinitely for room that it was given"
                raise BlockedError  # Ray makes it wait
            world.note(f"{self._run}: placed at {placement}")
            group = world.groups[self._run] = Group(placement, cpus, unfit=world.chance(0.05))
        elif group.placement != placement:
            raise BlockedError
        first = 0
        for index, (node, ranks) in enumerate(placement):
            if node not in group.agents or not group.agents[node].alive:
                task = AgentTask(str(self._folder), dataset, first, ranks, 1, 0, _LEASE_S, False, "")
                group.agents[node] = AgentProcess(world, self._run, node, index, task)
            first += ranks
        if group.unfit and not world.calm:
            world.end_agent(self._run, placement[0][0])
        return [Handle(group.agents[node]) for node, _ in placement]

    def attach(self, placement: Placement) -> list[AgentHandle]:
        group = self._world.groups.get(self._run)
        handles: list[AgentHandle] = []
        for index, (node, _) in enumerate(placement):
            if group is None or node not in group.agents or not group.agents[node].alive:
                raise AgentLostError(index, "no such actor")
            handles.append(Handle(group.agents[node]))
        return handles

    def start(self, agents: Sequence[AgentHandle], number: int) -> None:
        self._world.perhaps_crash()
        self._world.note(f"{self._run}: generation {number}")
        world_size = sum(agent.ranks for agent in agents)
        accepted = [agent.start(Generation(number, world_size, "file:///nowhere")) for agent in agents]
        for wait in accepted:
            self._world.perhaps_crash()
            wait()

    def release(self, keep_copies: bool = False) -> None:
        self._world.perhaps_crash()
        if group := self._world.groups.pop(self._run, None):
            self._world.note(f"{self._run}: allocation released")
            for process in group.agents.values():
                process.end()
