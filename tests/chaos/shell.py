"""The coordinator's shell over a simulated cluster: what `RunLoop` and `Coordinator` do, with crashes in between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from drivetrain.coordinator.scheduler import Applicant, Scheduler
from drivetrain.runs import events as ev
from drivetrain.runs import states as st
from drivetrain.runs.controller import actions_to_resume, is_transition, step
from drivetrain.scheduling.rules import Rules, UserRules

if TYPE_CHECKING:
    from tests.chaos.world import World

RULES = Rules(users={"bob": UserRules(max_workers=6)}, aging_s=2000.0)
_DATASET = "/data/v1"


class CrashError(Exception):
    """The coordinator dies here."""


class Coordinator:
    """The shell, as `RunLoop` and `Coordinator` of `drivetrain.coordinator` are it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._runs: dict[str, tuple[st.State, Applicant]] = {}
        self._scheduler = Scheduler(lambda: RULES, lambda: list(world.nodes.values()), _NoUsage(), lambda: world.now)
        self._depth = 0

    def begin(self) -> None:
        """Take up every run that has not ended: all who hold a place first, then what is to be done about each."""
        runs = [run for run in self._world.stored if not self._world._over(run)]
        for run in runs:
            self._take_up(run)
        for run in runs:
            self._resume(run)

    def adopt(self, run: str) -> None:
        self._take_up(run)
        self._resume(run)

    def tick(self) -> None:
        for run in list(self._runs):
            self.tell(run, ev.Tick(self._world.now))
        self._scheduler.run_pass()

    def tell(self, run: str, event: ev.Event) -> None:
        """Decide, store, act; a crash may come in between."""
        if run not in self._runs:
            return
        before, applicant = self._runs[run]
        state, actions = step(before, event)
        if is_transition(before, state):
            self._perhaps_crash()
            self._world.note(f"{run}: {before.phase} -> {state.phase} on {type(event).__name__}")
            self._world.save(run, state)
            self._perhaps_crash()
        self._runs[run] = (state, applicant)
        if isinstance(event, ev.Stepped) and isinstance(state, st.Training):
            applicant.expects_end((self._world.jobs[run].steps - event.step) * 5.5, 5.0)
        for action in actions:
            self._act(run, action)
            self._perhaps_crash()

    def _take_up(self, run: str) -> None:
        world = self._world
        state, applicant = world.state(run), self._scheduler.applicant(world.jobs[run].request)
        applicant.connect(lambda event: world.later(0, 0.5, lambda: self._deliver(run, event)), lambda _: None)
        if isinstance(state, st.Allocated):
            applicant.holds(state.place, leaving=isinstance(state, st.Stopping))
        elif isinstance(state, st.Preparing):
            applicant.prepares()
        self._runs[run] = (state, applicant)

    def _resume(self, run: str) -> None:
        state, applicant = self._runs[run]
        if isinstance(state, st.Queued):
            applicant.wants_to_prepare()
        for action in actions_to_resume(state):
            self._act(run, action)

    def _deliver(self, run: str, event: ev.Event) -> None:
        if self._world.coordinator is self:  # what a dead coordinator was about to decide is gone with it
            self.tell(run, event)

    def _act(self, run: str, action: ev.Action) -> None:
        world, (state, applicant) = self._world, self._runs[run]
        match action:
            case ev.Prepare():
                world.later(1, 30, lambda: self._deliver(run, ev.Prepared(_DATASET)))
            case ev.GiveBack():
                world.release(run)
                applicant.wants_place(None, world.jobs[run].request.since)
            case ev.PlaceGang(_, place):
                world.place(run, place)
            case ev.StartGeneration(generation):
                world.start(run, generation)
            case ev.StopRanks():
                if group := world.groups.get(run):
                    group.ranks = {}
            case ev.AskStop():
                if group := world.groups.get(run):
                    group.stop_asked = True
            case ev.Conclude():
                world.later(1, 20, lambda: self._deliver(run, ev.Concluded()))
            case ev.Release():
                world.release(run)
                applicant.leaves()
            case ev.Attach(generation):
                self._attach(run, state, generation)
            case _:
                raise TypeError(action)

    def _attach(self, run: str, state: st.State, generation: int) -> None:
        """As `RunLoop._attach`: listen to the agents again, from their first word on."""
        group = self._world.groups.get(run)
        if group is None or len(group.alive) < len(group.placement):
            self._world.tell(run, ev.AgentLost(generation, "not found after a restart"), logged=False)
            return
        for event in list(group.log):
            self._world.later(0, 0.5, lambda event=event: self._deliver(run, event))  # type: ignore[misc]
        if isinstance(state, st.Starting) and group.generation != generation:
            self._world.start(run, generation)

    def _perhaps_crash(self) -> None:
        if not self._world.calm and self._world.random.random() < 0.01:
            raise CrashError


class _NoUsage:
    """Nobody's use of the cluster is remembered."""

    def usage(self) -> tuple[dict[str, float], float]:
        return {}, 0.0

    def remember_usage(self, shares: Any, now: float) -> None:
        pass
