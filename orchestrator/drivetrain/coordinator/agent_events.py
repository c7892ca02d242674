"""Listeners for the events of a run's agents: one per agent, with long polls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from drivetrain_workers.agent.event_log import LoggedEvent

from drivetrain.cluster.protocols import AgentHandle, AgentLostError
from drivetrain.coordinator.live_run import LiveRun
from drivetrain.coordinator.observer import Observer
from drivetrain.coordinator.scheduler import SchedulerHandle
from drivetrain.runs import events as ev
from drivetrain.runs import states as st
from drivetrain.scheduling.model import node_of

_POLL_TIMEOUT_S = 10.0


class AgentListener:
    """Reads the events of one agent until the agent dies or the run ends.

    Args:
        agent: to read from.
        over: returns whether the listener should stop.
        on_news: receives events.
        on_lost: receives the reason for the loss of the agent.
    """

    def __init__(
        self,
        agent: AgentHandle,
        over: Callable[[], bool],
        on_news: Callable[[list[LoggedEvent]], None],
        on_lost: Callable[[AgentHandle, str], None],
    ) -> None:
        self.agent = agent
        self._over, self._on_news, self._on_lost = over, on_news, on_lost
        self._since = 0
        self.ended = False

    def poll(self, timeout_s: float = _POLL_TIMEOUT_S) -> bool:
        """Read once; return whether there may be more to read."""
        if self._over():
            self.ended = True
            return False
        try:
            news = self.agent.events(self._since, timeout_s)
        except AgentLostError as error:
            self.ended = True
            self._on_lost(self.agent, str(error))
            return False
        if news:
            self._since = news[-1].number + 1
            self._on_news(news)
        return True


def listen_in_thread(listener: AgentListener) -> None:
    """Poll in a thread until the listener ends."""

    def loop() -> None:
        while listener.poll():
            pass

    threading.Thread(target=loop, name="agent-events", daemon=True).start()


class AgentEvents:
    """The agents of one run and their events.

    Args:
        live: the run.
        observer: interprets events.
        scheduler: receives failures of nodes and the expected end of the run.
        listen: starts to poll a listener.
    """

    def __init__(
        self,
        live: LiveRun,
        observer: Observer,
        scheduler: SchedulerHandle,
        listen: Callable[[AgentListener], None] = listen_in_thread,
    ) -> None:
        self._live, self._observer, self._scheduler, self._listen = live, observer, scheduler, listen
        self.agents: Sequence[AgentHandle] = ()
        self._listeners: dict[str, AgentListener] = {}

    def listen_to(self, agents: Sequence[AgentHandle]) -> None:
        """Set the run's agents and listen to the new ones."""
        self.agents = agents
        for agent in agents:
            known = self._listeners.get(agent.id)
            if known is None or known.ended:
                listener = AgentListener(agent, self._is_over, self._take_news, self._take_loss)
                self._listeners[agent.id] = listener
                self._listen(listener)

    def clear(self) -> None:
        """Remove all agents."""
        self.agents = ()

    def report_failure_of(self, index: int) -> None:
        """Report a failure of an agent's node to the scheduler."""
        if isinstance(self._live.state, st.Allocated):
            self._scheduler.report_node_failure(self._live.state.allocation.placement[index][0])

    def _is_over(self) -> bool:
        return isinstance(self._live.state, st.Ended)

    def _take_news(self, news: list[LoggedEvent]) -> None:
        self._live.post(partial(self._interpret, news))

    def _take_loss(self, agent: AgentHandle, detail: str) -> None:
        self._live.post(partial(self._lost, agent, detail))

    def _interpret(self, news: list[LoggedEvent]) -> Iterator[ev.Event]:
        for logged in news:
            found = self._observer.observe(logged.event, self._live.generation)
            for rank in found.failed_ranks:
                self._report_failure_of_rank(rank)
            yield from found.events
        self._scheduler.update_expected_end(self._live.view.eta_s, self._live.view.start_s)

    def _lost(self, agent: AgentHandle, detail: str) -> Iterator[ev.Event]:
        if agent in self.agents:  # not one that has been replaced
            self._live.view.problem = detail
            self.report_failure_of(agent.index)
            yield ev.AgentLost(self._live.generation, detail)

    def _report_failure_of_rank(self, rank: int) -> None:
        if isinstance(self._live.state, st.Allocated):
            self._scheduler.report_node_failure(node_of(rank, self._live.state.allocation.placement))
