"""A simulated cluster around the real control plane: seeded, on a virtual clock, with faults.

Real are the coordinator, the loop of each run with its actions and its listeners, the scheduler, the agents with their
supervision of ranks and their event log, and the form in which states are stored. Simulated are time and threads,
nodes and placement groups, fork servers and ranks, the network and the database: messages are late, calls are lost, the
database is away at times, and the coordinator crashes before and after storing, and between any two actions.
"""

from __future__ import annotations

import heapq
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from drivetrain.coordinator.actions import Actions
from drivetrain.coordinator.agent_events import AgentEvents, AgentListener
from drivetrain.coordinator.coordinator import Coordinator
from drivetrain.coordinator.live_run import LiveRun
from drivetrain.coordinator.observer import Observer
from drivetrain.coordinator.run_loop import RunLoop
from drivetrain.coordinator.scheduler import Scheduler
from drivetrain.runs import events as ev
from drivetrain.runs import states as st
from drivetrain.scheduling.model import Node, Request
from drivetrain.scheduling.rules import Rules, UserRules
from drivetrain_workers.protocol import events as protocol
from drivetrain_workers.protocol.messages import Generation
from drivetrain_workers.protocol.reasons import Reason
from drivetrain_workers.protocol.step_record import StepRecord

from tests.chaos.nodes import BlockedError, Gang, Group, Rank
from tests.chaos.parts import CrashError, Inbox, NoWork, OwnerLock, Store, Tracker

RULES = Rules(users={"bob": UserRules(max_workers=6)}, aging_s=2000.0)
JOB = {
    "seed": 0,
    "data": {"name": "toy", "source": "/raw"},
    "model": {"factory": "model:make", "loss": "model:loss"},
    "training": {"steps": 1, "global_batch_size": 1},
    "checkpoint": {},
}


@dataclass
class Job:
    """The world's data on a run, apart from the stored record."""

    steps: int
    request: Request
    committed: int = 0
    step: int = 0
    writers: set[int] = field(default_factory=set)
    faults: int = 0  # of its ranks, agents and connections
    cancelled: bool = False  # by a user
    cancelled_at: int = 1 << 30  # the generation in which the request was certainly received


class SteppedLoop(RunLoop):
    """The loop of a run without its thread: the world calls its iterations."""

    world: World
    run: str
    inbox: Inbox

    def start(self, on_end: Callable[[], None]) -> None:
        self._on_end = on_end
        self.world.loops[self.run] = self
        self.world.while_alive(0, 0.1, self.begin)

    def take_step(self) -> None:
        if not self.ended:
            self.iterate()
            if isinstance(self.inbox.newest, ev.CancelRequested):
                job = self.world.jobs[self.run]
                job.cancelled_at = min(job.cancelled_at, self.world.state(self.run).progress.generation)
            if self.ended:
                self.world.check_forgotten(self.run)


class World:
    """One seeded life of a cluster.

    Args:
        seed: of every choice.
        folder: for the resolved job that agents read.
    """

    def __init__(self, seed: int, folder: Path) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self.calm = False
        self.nodes = {f"n{index}": Node(f"n{index}", float(self.random.randint(2, 6)), 0.0) for index in range(3)}
        self.jobs: dict[str, Job] = {}
        self.store = Store(self)
        self.groups: dict[str, Group] = {}
        self.coordinator: Coordinator | None = None
        self.loops: dict[str, SteppedLoop] = {}
        self.trace: list[str] = []
        self._life = 0  # of the coordinator
        self._crashed = False
        self._folder = folder
        (folder / "resolved.json").write_text(json.dumps(JOB))
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._number, self._pid = count(), count(100_000_000)  # no process of this machine has such an id
        self._node_number = count(len(self.nodes))

    # Time ------------------------------------------------------------------------------------------------------

    def later(self, least: float, most: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + self.random.uniform(least, most), next(self._number), what))

    def while_alive(self, least: float, most: float, what: Callable[[], None]) -> None:
        """Schedule an action of the coordinator, to be skipped if the coordinator has died by then."""
        life = self._life

        def do() -> None:
            if self._life == life:
                what()

        self.later(least, most, do)

    def run(self) -> None:
        """Run the chaos phase, then a calm phase in which every run must end."""
        runs = self.random.randint(1, 5)
        for number in range(runs):
            self.later(0, 200, lambda number=number: self._submit(number))  # type: ignore[misc]
        self.later(0, 0, self._restart)
        self.later(0, 1, self._heartbeat)
        self._advance(lambda: self.now > 2500.0 or (len(self.jobs) == runs and self._all_over()))
        self.calm = True
        self.note("calm")
        if sum(node.cpus for node in self.nodes.values()) < 6:
            self._node_comes()
        calm_at = self.now
        self._advance(lambda: self._all_over() and self.now > calm_at + 100.0)
        self._check_end()

    def note(self, text: str) -> None:
        self.trace.append(f"{self.now:9.2f} {text}")

    def chance(self, probability: float) -> bool:
        return not self.calm and self.random.random() < probability

    def perhaps_crash(self) -> None:
        """Crash with some probability. Actions in ``finally`` blocks have no effect afterwards."""
        if self._crashed or (self.coordinator and self.chance(0.005)):
            self._crashed = True
            raise CrashError

    def next_pid(self) -> int:
        return next(self._pid)

    def _advance(self, done: Callable[[], bool]) -> None:
        for _ in range(200_000):
            if done():
                return
            self.now, _, what = heapq.heappop(self._queue)
            try:
                what()
            except BlockedError:
                pass
            except CrashError:
                self._coordinator_is_dead()
            self._check()
        raise AssertionError(f"runs that do not end: {[run for run in self.jobs if not self._over(run)]}")

    def state(self, run: str) -> st.State:
        return self.store.get(run).state

    def _all_over(self) -> bool:
        return all(self._over(run) for run in self.jobs)

    def _over(self, run: str) -> bool:
        return self.store.get(run).ended and run not in self.groups

    # What happens ----------------------------------------------------------------------------------------------

    def _heartbeat(self) -> None:
        """Inject a fault every few seconds, and run a scheduling pass."""
        self.later(1, 5, self._heartbeat)
        if self.coordinator:
            for loop in list(self.loops.values()):
                loop.take_step()
            self._scheduler.run_pass()
        if self.chance(0.15):
            self.random.choice(
                [
                    self._coordinator_dies,
                    self._rank_dies,
                    self._rank_dies,
                    self._agent_dies,
                    self._node_goes,
                    self._node_comes,
                    self._cancel,
                ]
            )()

    def _submit(self, number: int) -> None:
        run, draw = f"run-{number}", self.random
        most = draw.randint(1, 6)
        request = Request(
            run=run,
            user=draw.choice(["ann", "bob"]),
            queue="default",
            priority=draw.choice([0, 0, 1, 2]),
            since=self.now,
            workers=most,
            min_workers=draw.randint(1, most) if draw.random() < 0.4 else most,
            cpus=1.0,
            gpus=0.0,
            expected_s=draw.choice([math.inf, 50.0, 300.0]),
            restart_s=5.0,
            preemptible=draw.random() < 0.9,
        )
        self.jobs[run] = Job(draw.randint(5, 40), request)
        self.store.create(run, st.Queued())
        if self.coordinator:
            self.coordinator.adopt(run, new=True)

    def _coordinator_dies(self) -> None:
        if self.coordinator:
            self._crashed = True
            raise CrashError

    def _coordinator_is_dead(self) -> None:
        self.note("the coordinator crashes")
        self.coordinator, self._crashed = None, False
        for run, job in self.jobs.items():
            job.faults += isinstance(self.state(run), st.Starting)  # some of its agents may not have been asked yet
        self.loops = {}
        self._life += 1
        for group in self.groups.values():
            for process in group.agents.values():
                process.listeners.clear()
        self.later(0.5, 20, self._restart)

    def _restart(self) -> None:
        self.note("the coordinator starts")
        rules, nodes = (lambda: RULES), (lambda: list(self.nodes.values()))
        self._scheduler = Scheduler(rules, nodes, self.store, lambda: self.now)
        parts = (self._build, lambda run: None, lambda run: OwnerLock(), self._scheduler.status)
        self.coordinator = Coordinator(self.store, "session", *parts)  # type: ignore[arg-type]
        for record in self.store.unended(""):  # submitted without a coordinator; the client retries
            self.coordinator.adopt(record.id)

    def _build(self, run: str) -> RunLoop:
        """Build a run as in `drivetrain.coordinator.wiring`."""
        inbox = Inbox(lambda: self.while_alive(0, 0.5, self.loops[run].take_step))
        parts: Any = (self.store.get(run), self.store, 0.0, inbox, lambda: self.now)
        live, tracker, work = LiveRun(*parts), Tracker(), NoWork()
        scheduler = self._scheduler.handle_of(self.jobs[run].request)
        observer = Observer(live, tracker, self._folder / "ledger")  # type: ignore[arg-type]
        agents = AgentEvents(live, observer, scheduler, self._listen)
        gang = Gang(self, run, self._folder)
        shared: Any = (live, self.store, gang, agents, scheduler, tracker, work, work, work)
        actions = Actions(*shared, spawn=self._spawn, sleep=lambda _: None)
        loop = SteppedLoop(live, actions, scheduler, tracker, lambda joules: "")  # type: ignore[arg-type]
        loop.world, loop.run, loop.inbox = self, run, inbox
        return loop

    def _spawn(self, work: Callable[[], None]) -> None:
        """Run a thread of the coordinator."""

        def attempt() -> None:
            try:
                work()
            except BlockedError:
                self.while_alive(1, 2, attempt)

        self.while_alive(0, 10, attempt)

    def _listen(self, listener: AgentListener) -> None:
        listener.agent.process.listeners.append(listener)  # type: ignore[attr-defined]
        self.poll_soon(listener)

    def poll_soon(self, listener: AgentListener) -> None:
        if not listener.ended:
            most = 0.1 if self.calm else self.random.choice([0.01, 0.1, 3.0])
            self.while_alive(0, most, lambda: None if listener.ended else listener.poll(0.0) and None)

    def _rank_dies(self) -> None:
        if living := [(run, rank) for run, group in self.groups.items() for rank in group.ranks]:
            run, rank = self.random.choice(living)
            reason = self.random.choice([None, Reason.COLLECTIVE, Reason.STORAGE, Reason.HUNG])
            self.note(f"{run}: rank {rank.id.rank} dies of {reason}")
            self.jobs[run].faults += 1
            if reason is Reason.HUNG:
                rank.report(protocol.RankHung(rank.id, "it hangs"))
                return
            rank.exit(1 if reason else -9, reason)
            self._lose_peers(run, rank.id.generation)

    def _lose_peers(self, run: str, generation: int) -> None:
        """Let the other ranks detect the loss of a rank."""
        group = self.groups.get(run)
        for rank in group.ranks if group else []:
            if rank.id.generation == generation:
                self.later(0, 1, lambda rank=rank: rank.exit(1, Reason.COLLECTIVE))  # type: ignore[misc]

    def _agent_dies(self) -> None:
        living = [run for run, group in self.groups.items() if any(p.alive for p in group.agents.values())]
        if living:
            run = self.random.choice(living)
            agents = self.groups[run].agents
            self.end_agent(run, self.random.choice(sorted(node for node, p in agents.items() if p.alive)))

    def end_agent(self, run: str, node: str) -> None:
        self.note(f"{run}: the agent on {node} dies")
        self.jobs[run].faults += 2  # its peers may report that first
        process = self.groups[run].agents[node]
        generations = {rank.id.generation for rank in process.fork_server.ranks.values()}
        process.end()
        for generation in generations:
            self._lose_peers(run, generation)

    def _node_goes(self) -> None:
        if len(self.nodes) > 1:
            node = self.random.choice(sorted(self.nodes))
            self.note(f"node {node} goes")
            del self.nodes[node]
            for run, group in self.groups.items():
                if node in group.agents and group.agents[node].alive:
                    self.end_agent(run, node)

    def _node_comes(self) -> None:
        node = f"n{next(self._node_number)}"
        self.note(f"node {node} comes")
        self.nodes[node] = Node(node, 6.0, 0.0)

    def _cancel(self) -> None:
        if self.jobs and self.coordinator:
            run = self.random.choice(sorted(self.jobs))
            if not self.store.get(run).ended:
                self.note(f"{run}: somebody cancels it")
                self.jobs[run].cancelled = True
                self.coordinator.cancel(run)

    # What ranks do ---------------------------------------------------------------------------------------------

    def ranks_joined(self, run: str, generation: Generation) -> None:
        """Fork a rank; once all ranks exist, they load and train."""
        ranks = self._gang(run, generation.number)
        if len(ranks) == generation.world_size:
            job, first = self.jobs[run], ranks[0]
            job.step = job.committed
            first.report(protocol.RankLoaded(first.id, job.committed, job.steps))
            self.later(1, 10, lambda: self._step(run, generation))

    def _gang(self, run: str, generation: int) -> list[Rank]:
        ranks = [rank for rank in self.groups[run].ranks if rank.id.generation == generation]
        return sorted(ranks, key=lambda rank: rank.id.rank)

    def _step(self, run: str, generation: Generation) -> None:
        ranks = self._gang(run, generation.number) if run in self.groups else []
        if len(ranks) < generation.world_size:
            return  # they have ended, or wait for one that has
        job, number, first = self.jobs[run], generation.number, ranks[0]
        job.writers.add(number)
        stop_asked = any(rank.stop_asked for rank in ranks)
        if job.step < job.steps:  # a generation that has loaded the last step is complete
            job.step += 1
            positions = (job.step - 1, job.step)
            record = StepRecord(job.step, positions, generation.world_size, number, self.now, 1.0, 0.1, 1.0)
            first.report(protocol.StepDone(first.id, record, 5.0, 0.0, 1))
            if job.step == job.steps or stop_asked or self.random.random() < 0.3:
                assert job.step >= job.committed, "a checkpoint was overtaken by an older one"
                job.committed = job.step
                first.report(protocol.CheckpointCommitted(first.id, job.step, "folder", 1, 0.0, 0.0))
        if job.step == job.steps or stop_asked:
            first.report(protocol.TrainingFinished(first.id, job.step == job.steps, 1, 1))
            for rank in ranks:
                rank.exit(0)
        else:
            self.later(1, 10, lambda: self._step(run, generation))

    # What must hold --------------------------------------------------------------------------------------------

    def free(self, node: str) -> float:
        used = sum(
            ranks * group.cpus for group in self.groups.values() for name, ranks in group.placement if name == node
        )
        return self.nodes[node].cpus - used

    def _check(self) -> None:
        given = dict.fromkeys(self.nodes, 0.0)
        for run, job in self.jobs.items():
            state = self.state(run)
            for node, ranks in state.allocation.placement if isinstance(state, st.Allocated) else ():
                if node in given:
                    given[node] += ranks * job.request.cpus
        for node, cpus in given.items():
            assert cpus <= self.nodes[node].cpus, f"{node} was given twice"
            assert self.free(node) >= 0, f"{node} holds more than it has"
        for run, group in self.groups.items():
            ranks = sum(ranks for _, ranks in group.placement)
            request = self.jobs[run].request
            assert request.min_workers <= ranks <= request.workers, f"{run} is half placed"
            for process in group.agents.values():
                generations = {rank.id.generation for rank in process.fork_server.ranks.values()}
                assert len(generations) <= 1, f"{run} has ranks of two generations on one node"

    def check_forgotten(self, run: str) -> None:
        """Check that a run that has ended holds no resources and waits for none."""
        status = self._scheduler.status()
        assert not any(run in node.ranks for node in status.nodes), f"the scheduler believes that {run} holds nodes"
        assert all(entry.request.run != run for entry in status.queue), f"the scheduler believes that {run} waits"

    def _check_end(self) -> None:
        assert not self.groups, "allocations were kept"
        for run, job in self.jobs.items():
            state = self.state(run)
            assert isinstance(state, st.Ended)
            if state.reason is Reason.COMPLETED:
                assert job.committed == job.steps, f"{run} is reported complete and is not"
            else:
                assert job.cancelled or job.faults, f"{run} was lost for no reason: {state}"
            assert state.reason is not Reason.CANCELLED or job.cancelled, f"no user has cancelled {run}"
            assert state.reason is not Reason.INTERNAL, f"{run}: {state.detail}"
            assert state.progress.restarts <= job.faults, f"{run} was restarted more often than something has failed"
            assert state.progress.generation <= job.cancelled_at, f"{run} continued after it was cancelled"
            assert state.progress.committed_step <= job.committed
