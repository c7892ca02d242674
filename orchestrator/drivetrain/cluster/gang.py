"""A run's agents on Ray: one per node, in one placement group, found again by name."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from drivetrain_pipelines.errors import InputError
from drivetrain_workers.agent import NodeAgent
from drivetrain_workers.messages import Generation
from drivetrain_workers.run_folder import RunFolder
from ray.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from drivetrain.runs.policies import NodeResources, gang_shape
from drivetrain.spec import ResourcesSpec

LEASE_S = 120.0
_FAREWELL_S = 10.0


@dataclass(frozen=True)
class Agent:
    """One agent of a gang."""

    index: int
    handle: Any


class Gang:
    """The agents of one run.

    Args:
        run_id: names the placement group and the agents.
        resources: the job's.
        folder: of the run.
    """

    def __init__(self, run_id: str, resources: ResourcesSpec, folder: RunFolder) -> None:
        self._run_id, self._resources, self._folder = run_id, resources, folder

    def place(self, dataset: str) -> list[Agent]:
        """Get the placement group and all agents, reusing what is alive; waits for the placement group.

        Raises:
            InputError: the cluster cannot hold the workers.
        """
        group = self._placement_group()
        ray.get(group.ready())
        ranks = [int(bundle["CPU"] // self._resources.cpus_per_worker) for bundle in group.bundle_specs]
        return [
            Agent(index, self._agent(group, index, sum(ranks[:index]), count, dataset))
            for index, count in enumerate(ranks)
        ]

    def attach(self) -> list[Agent]:
        """The agents that live. Raises ValueError when one of them is gone."""
        group = get_placement_group(self._run_id)
        return [Agent(index, ray.get_actor(self._name(index))) for index in range(len(group.bundle_specs))]

    def start(self, agents: list[Agent], number: int) -> None:
        """Start a generation on all agents; returns when they have taken it."""
        generation = Generation(number, self._resources.workers, self._rendezvous(agents, number))
        ray.get([agent.handle.start.remote(generation) for agent in agents])

    def release(self) -> None:
        """End all agents and give the resources back."""
        try:
            group = get_placement_group(self._run_id)
        except ValueError:
            return
        for index in range(len(group.bundle_specs)):
            try:
                agent = ray.get_actor(self._name(index))
            except ValueError:
                continue  # already gone
            with suppress(ray.exceptions.RayError):
                ray.get(agent.forget_copies.remote(), timeout=_FAREWELL_S)
            ray.kill(agent)
        remove_placement_group(group)

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

    def _placement_group(self) -> PlacementGroup:
        group: PlacementGroup
        try:
            group = get_placement_group(self._run_id)
        except ValueError:
            bundles = [
                {"CPU": ranks * self._resources.cpus_per_worker} | ({"GPU": ranks * self._gpus} if self._gpus else {})
                for ranks in self.shape()
            ]
            strategy = "STRICT_SPREAD" if len(bundles) > 1 else "PACK"
            group = placement_group(bundles, strategy, name=self._run_id, lifetime="detached")
        return group

    def shape(self) -> list[int]:
        """Ranks per node. Raises InputError when the cluster cannot hold them."""
        nodes = [NodeResources(n["Resources"].get("CPU", 0), n["Resources"].get("GPU", 0)) for n in _alive_nodes()]
        shape = gang_shape(nodes, self._resources.workers, self._resources.cpus_per_worker, self._gpus)
        if shape is None:
            have = f"{sum(n.cpus for n in nodes):g} CPUs and {sum(n.gpus for n in nodes):g} GPUs"
            raise InputError(
                "resources.workers",
                f"{self._resources.workers} workers of {self._resources.cpus_per_worker} CPUs and {self._gpus} GPUs",
                f"what fits on {len(nodes)} nodes with {have}",
                "Try --set resources.workers=1.",
            )
        return shape

    @property
    def _gpus(self) -> int:
        wanted = self._resources.gpus_per_worker
        return wanted if wanted != "auto" else int(any(node["Resources"].get("GPU", 0) for node in _alive_nodes()))

    def _agent(self, group: PlacementGroup, index: int, first_rank: int, ranks: int, dataset: str) -> Any:
        bundle = group.bundle_specs[index]
        actor = ray.remote(NodeAgent).options(
            name=self._name(index),
            lifetime="detached",
            get_if_exists=True,
            num_cpus=bundle["CPU"],
            num_gpus=bundle.get("GPU", 0),
            max_concurrency=16,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
        )
        own = (first_rank, ranks, self._resources.cpus_per_worker, self._gpus)
        count = len(group.bundle_specs)
        successor = self._name((index + 1) % count) if count > 1 else ""
        return actor.remote(str(self._folder.path), dataset, *own, LEASE_S, len(_alive_nodes()) > 1, successor)

    def _name(self, index: int) -> str:
        return f"{self._run_id}/agent-{index}"


def _alive_nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]  # Ray's
