"""A run's agents on Ray: one per node, in one placement group, found again by name."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from drivetrain_pipelines.errors import DrivetrainError
from drivetrain_workers.agent.agent import NodeAgent
from drivetrain_workers.protocol.messages import Generation
from drivetrain_workers.records.run_folder import RunFolder
from ray.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from drivetrain.cluster.nodes import usable_nodes
from drivetrain.scheduling.model import Placement

LEASE_S = 120.0
_FAREWELL_S = 10.0
_LOOK_S = 1.0
_NODE_LABEL = "ray.io/node-id"


class NodesGoneError(DrivetrainError):
    """Nodes of a placement do not live any more."""

    def __init__(self, nodes: list[str]) -> None:
        super().__init__(nodes)
        self.nodes = nodes

    def __str__(self) -> str:
        return f"gone from the cluster: node {', '.join(node[:8] for node in self.nodes)}"


@dataclass(frozen=True)
class Agent:
    """One agent of a gang, and how many ranks it has."""

    index: int
    handle: Any
    ranks: int


class Gang:
    """The agents of one run.

    Args:
        run_id: names the placement group and the agents.
        cpus, gpus: per worker.
        folder: of the run.
    """

    def __init__(self, run_id: str, cpus: int, gpus: int, folder: RunFolder) -> None:
        self._run_id, self._cpus, self._gpus, self._folder = run_id, cpus, gpus, folder
        self._lock = threading.Lock()  # of the placement group: one that nobody wants any more is not made

    def place(self, dataset: str, placement: Placement, wanted: Callable[[], bool]) -> list[Agent]:
        """Get the placement group and all agents, reusing what is alive; waits until the nodes have room.

        Args:
            wanted: asked while it waits; without agents it returns when nobody wants them any more.

        Raises:
            NodesGoneError: a node has left the cluster.
        """
        self._check(placement)
        with self._lock:
            if not wanted():
                return []
            group = self._placement_group(placement)
        while not group.wait(_LOOK_S):
            self._check(placement)
            if not wanted():
                return []
        self._check(placement)
        firsts = [sum(ranks for _, ranks in placement[:index]) for index in range(len(placement))]
        return [
            Agent(index, self._agent(group, index, firsts[index], ranks, dataset), ranks)
            for index, (_, ranks) in enumerate(placement)
        ]

    def attach(self, placement: Placement) -> list[Agent]:
        """The agents that live. Raises ValueError when one of them is gone."""
        return [Agent(index, ray.get_actor(self._name(index)), ranks) for index, (_, ranks) in enumerate(placement)]

    def start(self, agents: list[Agent], number: int) -> None:
        """Start a generation on all agents; returns when they have taken it."""
        world_size = sum(agent.ranks for agent in agents)
        generation = Generation(number, world_size, self._rendezvous(agents, number))
        ray.get([agent.handle.start.remote(generation) for agent in agents])

    def release(self, keep_copies: bool = False) -> None:
        """End all agents and give the resources back; copies in memory may stay for those who come after them."""
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
                continue  # already gone
            with suppress(ray.exceptions.RayError):
                if not keep_copies:
                    ray.get(agent.forget_copies.remote(), timeout=_FAREWELL_S)
            ray.kill(agent)

    def _check(self, placement: Placement) -> None:
        alive = {node.id for node in usable_nodes()}
        if gone := [node for node, _ in placement if node not in alive]:
            raise NodesGoneError(gone)

    def _rendezvous(self, agents: list[Agent], number: int) -> str:
        if len(agents) == 1:  # a file: no port to be taken by others, nothing that listens
            folder = self._folder.path / "rendezvous"
            folder.mkdir(parents=True, exist_ok=True)
            own = folder / f"generation-{number}"
            for old in folder.iterdir():
                if old != own:
                    old.unlink()
            return f"file://{own}"
        address = ray.get(agents[0].handle.address.remote())
        return f"tcp://{address['ip']}:{address['port']}"

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
            max_task_retries=-1,  # a call that the network has lost, not the agent, is made again: all may be
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
        )
        own = (first_rank, ranks, self._cpus, self._gpus)
        count = len(group.bundle_specs)
        successor = self._name((index + 1) % count) if count > 1 else ""
        return actor.remote(str(self._folder.path), dataset, *own, LEASE_S, len(usable_nodes()) > 1, successor)

    def _name(self, index: int) -> str:
        return f"{self._run_id}/agent-{index}"
