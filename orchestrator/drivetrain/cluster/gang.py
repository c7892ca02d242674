"""The agents of a run as Ray actors: one per node, in one placement group, with stable names."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import ray
from drivetrain_pipelines.actors.ray_failures import in_words
from drivetrain_pipelines.errors import DrivetrainError
from drivetrain_workers.agent.agent import NodeAgent
from drivetrain_workers.agent.event_log import LoggedEvent
from drivetrain_workers.agent.rank_supervisor import START_TIMEOUT_S
from drivetrain_workers.model_processes.requests import Request
from drivetrain_workers.protocol.messages import Address, AgentSnapshot, AgentTask, Generation
from drivetrain_workers.records.run_folder import RunFolder
from ray.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from drivetrain.cluster.nodes import usable_nodes
from drivetrain.cluster.protocols import AgentHandle, AgentLostError, NodesGoneError
from drivetrain.scheduling.model import Placement

LEASE_S = 120.0
_SHUTDOWN_TIMEOUT_S = 10.0
_ANSWER_TIMEOUT_S = 300.0  # beyond the time that the call itself may take; a busy machine starts a process in minutes
_POLL_INTERVAL_S = 1.0
_NODE_LABEL = "ray.io/node-id"


class RayAgent:
    """An agent that runs as a Ray actor; see `AgentHandle`."""

    def __init__(self, index: int, ranks: int, actor: Any) -> None:
        self.index, self.ranks, self._actor = index, ranks, actor

    @property
    def id(self) -> str:
        """Identifier of the actor; see `AgentHandle`."""
        return str(self._actor._actor_id.hex())

    def address(self) -> Address:
        """Return an address for the first rank; see `AgentHandle`."""
        found: Address = self._get(self._actor.address.remote())
        return found

    def start(self, generation: Generation) -> Callable[[], None]:
        """Start a generation; see `AgentHandle`."""
        call = self._actor.start.remote(generation)
        return lambda: self._get(call, START_TIMEOUT_S + _ANSWER_TIMEOUT_S)

    def stop(self) -> None:
        """Kill the ranks; see `AgentHandle`."""
        self._actor.stop.remote()  # a dead agent is reported by its listener

    def request_stop(self) -> None:
        """Ask the ranks to save and end; see `AgentHandle`."""
        self._actor.request_stop.remote()

    def events(self, since: int, timeout_s: float) -> list[LoggedEvent]:
        """Return new events; see `AgentHandle`."""
        found: list[LoggedEvent] = self._get(self._actor.events.remote(since, timeout_s), timeout_s + _ANSWER_TIMEOUT_S)
        return found

    def snapshot(self) -> AgentSnapshot:
        """Return the processes; see `AgentHandle`."""
        found: AgentSnapshot = self._get(self._actor.snapshot.remote())
        return found

    def run_request(self, request: Request) -> str:
        """Return the answer to a request; see `AgentHandle`."""
        return str(self._get(self._actor.run_request.remote(request), request.timeout_s + _ANSWER_TIMEOUT_S))

    def finish_uploads(self, timeout_s: float) -> bool:
        """Wait for the last uploads; see `AgentHandle`."""
        call = self._actor.finish_uploads.remote(timeout_s)
        return bool(self._get(call, timeout_s + _SHUTDOWN_TIMEOUT_S))

    def _get(self, call: Any, timeout_s: float = _ANSWER_TIMEOUT_S) -> Any:
        try:
            return ray.get(call, timeout=timeout_s)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, DrivetrainError | OSError):
                raise error.cause from None
            raise AgentLostError(self.index, f"agent {self.index} failed: {in_words(error)}") from error
        except ray.exceptions.RayError as error:
            raise AgentLostError(self.index, f"agent {self.index} is lost: {in_words(error)}") from error


class RayGang:
    """The agents of one run; see `Gang`.

    Args:
        run_id: names the placement group and the agents.
        cpus, gpus: per worker.
        folder: of the run.
    """

    def __init__(self, run_id: str, cpus: int, gpus: int, folder: RunFolder) -> None:
        self._run_id, self._cpus, self._gpus, self._folder = run_id, cpus, gpus, folder
        self._lock = threading.Lock()  # of the placement group: none is created after a release

    def place(self, dataset: str, placement: Placement, wanted: Callable[[], bool]) -> list[AgentHandle]:
        """Start the agents, see `Gang`. An existing placement group and living agents are reused."""
        self._check(placement)
        with self._lock:
            if not wanted():
                return []
            group = self._placement_group(placement)
        while not group.wait(_POLL_INTERVAL_S):
            self._check(placement)
            if not wanted():
                return []
        self._check(placement)
        firsts = [sum(ranks for _, ranks in placement[:index]) for index in range(len(placement))]
        return [
            RayAgent(index, ranks, self._agent(group, index, firsts[index], ranks, dataset))
            for index, (_, ranks) in enumerate(placement)
        ]

    def attach(self, placement: Placement) -> list[AgentHandle]:
        """Return the existing agents; see `Gang`."""
        return [RayAgent(index, ranks, self._find(index)) for index, (_, ranks) in enumerate(placement)]

    def start(self, agents: Sequence[AgentHandle], number: int) -> None:
        """Start a generation on all agents; see `Gang`."""
        world_size = sum(agent.ranks for agent in agents)
        generation = Generation(number, world_size, self._rendezvous(agents, number))
        accepted = [agent.start(generation) for agent in agents]
        for wait in accepted:
            wait()

    def release(self, keep_copies: bool = False) -> None:
        """End all agents; see `Gang`."""
        with self._lock:
            try:
                group = get_placement_group(self._run_id)
            except ValueError:
                return
            self._end_agents(len(group.bundle_specs), keep_copies)
            remove_placement_group(group)

    def _end_agents(self, count: int, keep_copies: bool) -> None:
        for index in range(count):
            try:
                agent = ray.get_actor(self._name(index))
            except ValueError:
                continue  # already ended
            with suppress(ray.exceptions.RayError):
                if not keep_copies:
                    ray.get(agent.remove_copies.remote(), timeout=_SHUTDOWN_TIMEOUT_S)
            ray.kill(agent)

    def _find(self, index: int) -> Any:
        try:
            return ray.get_actor(self._name(index))
        except ValueError as error:
            raise AgentLostError(index, f"agent {index} is lost: there is no such process") from error

    def _check(self, placement: Placement) -> None:
        alive = {node.id for node in usable_nodes()}
        if lost := [node for node, _ in placement if node not in alive]:
            raise NodesGoneError(lost)

    def _rendezvous(self, agents: Sequence[AgentHandle], number: int) -> str:
        if len(agents) == 1:  # a file needs no port
            folder = self._folder.path / "rendezvous"
            folder.mkdir(parents=True, exist_ok=True)
            current = folder / f"generation-{number}"
            for old in folder.iterdir():
                if old != current:
                    old.unlink()
            return str(current)
        address = agents[0].address()
        return f"tcp://{address.ip}:{address.port}"

    def _placement_group(self, placement: Placement) -> PlacementGroup:
        group: PlacementGroup
        try:
            group = get_placement_group(self._run_id)
        except ValueError:
            bundles = [
                {"CPU": float(ranks * self._cpus)} | ({"GPU": float(ranks * self._gpus)} if self._gpus else {})
                for _, ranks in placement
            ]
            where = [{_NODE_LABEL: node} for node, _ in placement]
            group = placement_group(
                bundles, "PACK", name=self._run_id, lifetime="detached", bundle_label_selector=where
            )
        return group

    def _agent(self, group: PlacementGroup, index: int, first_rank: int, ranks: int, dataset: str) -> Any:
        bundle = group.bundle_specs[index]
        actor = ray.remote(NodeAgent).options(
            name=self._name(index),
            lifetime="detached",
            get_if_exists=True,
            num_cpus=bundle["CPU"],
            num_gpus=bundle.get("GPU", 0),
            max_concurrency=16,
            max_task_retries=-1,  # calls lost by the network are retried; all calls are idempotent
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
        )
        count = len(group.bundle_specs)
        task = AgentTask(
            str(self._folder.path),
            dataset,
            first_rank=first_rank,
            ranks=ranks,
            threads=self._cpus,
            gpus=self._gpus,
            lease_s=LEASE_S,
            several_nodes=len(usable_nodes()) > 1,
            successor=self._name((index + 1) % count) if count > 1 else "",
        )
        return actor.remote(task)

    def _name(self, index: int) -> str:
        return f"{self._run_id}/agent-{index}"
