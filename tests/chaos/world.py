"""A simulated cluster for the control plane's own functions: seeded, on a virtual clock, and hostile.

Real are the pure core of runs (`drivetrain.runs.controller`), the scheduler with its book and its policy, and the form
in which states are stored. Simulated are nodes, placement groups, agents and ranks, the network between them and the
coordinator (late, doubled and reordered messages, lost commands), the store, and the coordinator's shell, which crashes
before storing, after storing and between any two actions.
"""

from __future__ import annotations

import heapq
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from drivetrain.runs import events as ev
from drivetrain.runs import states as st
from drivetrain.scheduling.model import Node, Placement, Request
from drivetrain_workers.protocol.reasons import Reason

from tests.chaos.shell import Coordinator, CrashError


@dataclass
class Group:
    """A placement group with its agents and their ranks."""

    placement: Placement
    cpus: float
    alive: set[str]  # nodes whose agent lives
    generation: int = 0
    ranks: dict[str, int] = field(default_factory=dict)  # node -> generation of its living ranks
    stop_asked: bool = False
    log: list[ev.Event] = field(default_factory=list)  # what agents have told; a new coordinator reads it all again


@dataclass
class Job:
    """What the world knows of a run, beside what is stored."""

    steps: int
    request: Request
    committed: int = 0
    step: int = 0
    writers: set[int] = field(default_factory=set)
    faults: int = 0  # of its ranks and agents
    cancelled: bool = False  # by somebody
    cancelled_at: int = 1 << 30  # the generation in which that was heard for sure


class World:
    """One seeded life of a cluster.

    Args:
        seed: of every choice.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self.calm = False
        self.nodes = {f"n{index}": Node(f"n{index}", float(self.random.randint(2, 6)), 0.0) for index in range(3)}
        self.jobs: dict[str, Job] = {}
        self.stored: dict[str, st.State] = {}
        self.groups: dict[str, Group] = {}
        self.coordinator: Coordinator | None = None
        self.trace: list[str] = []
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()
        self._node_number = count(len(self.nodes))

    # Time ------------------------------------------------------------------------------------------------------

    def later(self, least: float, most: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + self.random.uniform(least, most), next(self._number), what))

    def run(self) -> None:
        """Chaos first; then calm, in which everything has to come to its end."""
        for number in range(self.random.randint(1, 5)):
            self.later(0, 200, lambda number=number: self._submit(number))  # type: ignore[misc]
        self.later(0, 0, self._restart)
        self.later(0, 1, self._heartbeat)
        self._advance(lambda: self.now > 2500.0)
        self.calm = True
        self.note("calm")
        if sum(node.cpus for node in self.nodes.values()) < 6:
            self._node_comes()
        self._advance(lambda: all(self._over(run) for run in self.jobs) and self.now > 2600.0)
        self._check_end()

    def note(self, text: str) -> None:
        self.trace.append(f"{self.now:9.2f} {text}")

    def _advance(self, done: Callable[[], bool]) -> None:
        for _ in range(60_000):
            if done():
                return
            self.now, _, what = heapq.heappop(self._queue)
            try:
                what()
            except CrashError:
                self.note("the coordinator crashes")
                self.coordinator = None
                self.later(0.5, 20, self._restart)
            self._check()
        raise AssertionError(f"runs that do not end: {[run for run in self.jobs if not self._over(run)]}")

    def state(self, run: str) -> st.State:
        return self.stored[run]

    def _over(self, run: str) -> bool:
        return isinstance(self.state(run), st.Ended) and run not in self.groups

    # What happens ----------------------------------------------------------------------------------------------

    def _heartbeat(self) -> None:
        """Every few seconds something goes wrong, and the scheduler looks again."""
        self.later(1, 5, self._heartbeat)
        if self.coordinator:
            self.coordinator.tick()
        if not self.calm and self.random.random() < 0.15:
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
        self.save(run, st.Queued())
        if self.coordinator:
            self.coordinator.adopt(run)

    def _coordinator_dies(self) -> None:
        if self.coordinator:
            raise CrashError

    def _restart(self) -> None:
        self.note("the coordinator starts")
        self.coordinator = Coordinator(self)
        self.coordinator.begin()

    def _rank_dies(self) -> None:
        if living := [run for run, group in self.groups.items() if group.ranks]:
            run = self.random.choice(living)
            group = self.groups[run]
            node = self.random.choice(sorted(group.ranks))
            self.note(f"{run}: a rank on {node} dies")
            self.jobs[run].faults += 1
            reason = self.random.choice([Reason.RANK_KILLED, Reason.COLLECTIVE, Reason.HUNG, Reason.STORAGE])
            generation = group.ranks.pop(node)
            self.tell(run, ev.RankLost(generation, reason, "a rank was killed", self.now))

    def _agent_dies(self) -> None:
        if living := [run for run, group in self.groups.items() if group.alive]:
            run = self.random.choice(living)
            self._end_agent(run, self.random.choice(sorted(self.groups[run].alive)))

    def _end_agent(self, run: str, node: str) -> None:
        group = self.groups[run]
        self.note(f"{run}: the agent on {node} dies")
        self.jobs[run].faults += 1
        group.alive.discard(node)
        group.ranks.pop(node, None)
        self.tell(run, ev.AgentLost(group.generation, "an agent died"), logged=False)

    def _node_goes(self) -> None:
        if len(self.nodes) > 1:
            node = self.random.choice(sorted(self.nodes))
            self.note(f"node {node} goes")
            del self.nodes[node]
            for run, group in self.groups.items():
                if node in group.alive:
                    self._end_agent(run, node)

    def _node_comes(self) -> None:
        node = f"n{next(self._node_number)}"
        self.note(f"node {node} comes")
        self.nodes[node] = Node(node, 6.0, 0.0)

    def _cancel(self) -> None:
        if self.jobs and self.coordinator:
            run = self.random.choice(sorted(self.jobs))
            self.note(f"{run}: somebody cancels it")
            self.jobs[run].cancelled = True
            self.coordinator.tell(run, ev.CancelAsked())
            self.jobs[run].cancelled_at = min(self.jobs[run].cancelled_at, self.state(run).progress.generation)

    # The network -----------------------------------------------------------------------------------------------

    def tell(self, run: str, event: ev.Event, logged: bool = True) -> None:
        """An agent says something: kept for long polls, heard late, twice, or in another order."""
        group = self.groups.get(run)
        if group and logged:
            group.log.append(event)
        for _ in range(1 if self.calm or self.random.random() < 0.8 else 2):
            delay = 0.1 if self.calm else self.random.choice([0.01, 0.1, 3.0])
            self.later(0, delay, lambda: self._hear(run, event))

    def _hear(self, run: str, event: ev.Event) -> None:
        if self.coordinator:
            self.coordinator.tell(run, event)

    # What the coordinator can do -------------------------------------------------------------------------------

    def place(self, run: str, place: st.Place, again: bool = False) -> None:
        """A placement group and its agents, as `drivetrain.cluster.gang.Gang.place` gets them."""
        state = self.state(run)
        if not (isinstance(state, st.Placing) and state.place == place):
            return  # nobody wants it any more
        if any(node not in self.nodes for node, _ in place.placement):
            self.later(0, 1, lambda: self._hear(run, ev.PlaceLost("a node is gone")))
            return
        cpus = self.jobs[run].request.cpus
        group = self.groups.get(run)
        if group is None:
            if any(ranks * cpus > self.free(node) for node, ranks in place.placement):
                assert not again or self.now < 20_000, f"{run} waits for ever for room that it was given"
                self.later(1, 2, lambda: self.place(run, place, again=True))  # Ray makes it wait
                return
            self.note(f"{run}: placed at {place.placement}")
            group = self.groups[run] = Group(place.placement, cpus, {node for node, _ in place.placement})
        elif group.placement == place.placement:
            group.alive = {node for node, _ in place.placement}  # new agents for those that died
        unfit = not self.calm and self.random.random() < 0.05
        self.jobs[run].faults += unfit
        outcome = ev.PlaceUnfit("agents die at once") if unfit else ev.GangPlaced()
        self.later(0, 2, lambda: self._hear_of_place(run, place, outcome))

    def _hear_of_place(self, run: str, place: st.Place, outcome: ev.Event) -> None:
        state = self.state(run)
        if isinstance(state, st.Placing) and state.place == place:  # as `RunLoop` takes it in
            self._hear(run, outcome)

    def free(self, node: str) -> float:
        used = sum(
            ranks * group.cpus for group in self.groups.values() for name, ranks in group.placement if name == node
        )
        return self.nodes[node].cpus - used

    def start(self, run: str, generation: int) -> None:
        """All agents end older ranks and fork this generation."""
        group, job = self.groups.get(run), self.jobs[run]
        if group is None or len(group.alive) < len(group.placement):
            self.tell(run, ev.AgentLost(generation, "an agent is dead"), logged=False)
            return
        if group.generation >= generation:
            return
        self.note(f"{run}: generation {generation}")
        group.generation, group.stop_asked = generation, False
        group.ranks = dict.fromkeys(group.alive, generation)
        job.step = job.committed
        self.tell(run, ev.RanksReady(generation, job.committed))
        self.later(1, 10, lambda: self._step(run, generation))

    def _step(self, run: str, generation: int) -> None:
        group, job = self.groups.get(run), self.jobs[run]
        if group is None or group.generation != generation or len(group.ranks) < len(group.placement):
            return  # its ranks have ended, or wait for one that has
        job.writers.add(generation)
        if job.step < job.steps:  # a generation that has loaded the last step has nothing left to do
            job.step += 1
            done = job.step == job.steps or group.stop_asked
            if done or self.random.random() < 0.3:
                assert job.step >= job.committed, "a checkpoint was overtaken by an older one"
                job.committed = job.step
                self.tell(run, ev.Committed(generation, job.step))
            self.tell(run, ev.Stepped(generation, job.step))
        if job.step == job.steps or group.stop_asked:
            group.ranks = {}
            self.tell(run, ev.RanksFinished(generation, complete=job.step == job.steps))
        else:
            self.later(1, 10, lambda: self._step(run, generation))

    def release(self, run: str) -> None:
        if self.groups.pop(run, None):
            self.note(f"{run}: place given back")

    def save(self, run: str, state: st.State) -> None:
        self.stored[run] = st.from_record(json.loads(json.dumps(st.to_record(state))))  # as the database has it

    # What must hold --------------------------------------------------------------------------------------------

    def _check(self) -> None:
        given = dict.fromkeys(self.nodes, 0.0)
        for run, job in self.jobs.items():
            state = self.state(run)
            for node, ranks in state.place.placement if isinstance(state, st.Allocated) else ():
                if node in given:
                    given[node] += ranks * job.request.cpus
        for node, cpus in given.items():
            assert cpus <= self.nodes[node].cpus, f"{node} was given twice"
            assert self.free(node) >= 0, f"{node} holds more than it has"
        for run, group in self.groups.items():
            assert len(set(group.ranks.values())) <= 1, f"{run} has ranks of two generations"
            ranks = sum(ranks for _, ranks in group.placement)
            request = self.jobs[run].request
            assert request.min_workers <= ranks <= request.workers, f"{run} is half placed"
            assert not group.ranks or max(group.ranks.values()) >= max(self.jobs[run].writers, default=0)

    def _check_end(self) -> None:
        assert not self.groups, "places were kept"
        for run, job in self.jobs.items():
            state = self.state(run)
            assert isinstance(state, st.Ended)
            if state.reason is Reason.COMPLETED:
                assert job.committed == job.steps, f"{run} is said to be complete and is not"
            else:
                assert job.cancelled or job.faults, f"{run} was lost for no reason"
            assert state.reason is not Reason.CANCELLED or job.cancelled, f"nobody has cancelled {run}"
            assert state.progress.restarts <= job.faults, f"{run} was restarted more often than something has failed"
            assert state.progress.generation <= job.cancelled_at, f"{run} went on after it was cancelled"
            assert state.progress.committed_step <= job.committed
