"""Agents and their errors, gangs, nodes: the use of Ray, with replacements for Ray's own calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from drivetrain.cluster import autoscaler, devices, gang, nodes, ray_internals
from drivetrain.cluster.autoscaler import Autoscaler
from drivetrain.cluster.devices import hardware_for
from drivetrain.cluster.gang import RayAgent, RayGang
from drivetrain.cluster.protocols import AgentHandle, AgentLostError, NodesGoneError
from drivetrain.planning.hardware import gpu
from drivetrain.scheduling.model import Node, Request
from drivetrain_pipelines.errors import InputError
from drivetrain_workers.errors import CheckpointError
from drivetrain_workers.model_processes.requests import PredictRequest
from drivetrain_workers.protocol.messages import Address, AgentSnapshot, Generation
from drivetrain_workers.records.run_folder import RunFolder
from ray.exceptions import ActorDiedError, GetTimeoutError, RayError, RayTaskError, RpcError

from tests.clock import Clock

QUESTION = PredictRequest("run", "data", ["x"], "pictures")
LEFT: Any = ActorDiedError


@dataclass
class Call:
    """A call of an actor that was started; `ray.get` waits for it."""

    name: str
    arguments: tuple[Any, ...]
    answer: Any


@dataclass
class Actor:
    """An actor that returns or raises predefined results."""

    answers: dict[str, Any] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        if name == "_actor_id":
            return SimpleNamespace(hex=lambda: "abc123")

        def remote(*arguments: Any) -> Call:
            self.calls.append(Call(name, arguments, self.answers.get(name)))
            return self.calls[-1]

        return SimpleNamespace(remote=remote)

    @property
    def called(self) -> list[tuple[Any, ...]]:
        return [(call.name, *call.arguments) for call in self.calls]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float | None]]:
    """Record each wait and its timeout."""
    waited: list[tuple[str, float | None]] = []

    def get(call: Call, timeout: float | None = None) -> Any:
        waited.append((call.name, timeout))
        if isinstance(call.answer, Exception):
            raise call.answer
        return call.answer

    monkeypatch.setattr(gang.ray, "get", get)
    return waited


def raised_there(cause: Exception) -> RayTaskError:
    """Return an exception of an actor's method in the form in which Ray raises it."""
    return RayTaskError("run_request", "a traceback", cause)


# Agents -----------------------------------------------------------------------------------------------------------


def test_an_agent_does_what_its_actor_does(waits: list[tuple[str, float | None]]) -> None:
    answers = {
        "address": Address("10.0.0.1", 4242),
        "events": [],
        "snapshot": AgentSnapshot(1, 2, 3, {0: 4}),
        "run_request": "an answer",
        "finish_uploads": True,
    }
    actor = Actor(answers)
    agent: AgentHandle = RayAgent(1, 2, actor)
    assert (agent.id, agent.index, agent.ranks) == ("abc123", 1, 2)
    assert agent.address() == Address("10.0.0.1", 4242)
    assert agent.events(7, 0.5) == []
    assert agent.snapshot().ranks == {0: 4}
    assert agent.run_request(QUESTION) == "an answer"
    assert agent.finish_uploads(60.0) is True
    assert actor.called == [
        ("address",),
        ("events", 7, 0.5),
        ("snapshot",),
        ("run_request", QUESTION),
        ("finish_uploads", 60.0),
    ]
    longer_than = {
        "address": 0,
        "events": 0.5,
        "snapshot": 0,
        "run_request": QUESTION.timeout_s,
        "finish_uploads": 60.0,
    }
    assert [name for name, _ in waits] == [*longer_than]
    for name, timeout_s in waits:  # every wait has a deadline, and the answer comes after the time that it is given
        assert timeout_s
        assert timeout_s > longer_than[name]


def test_stopping_does_not_wait(waits: list[tuple[str, float | None]]) -> None:
    """A dead agent is detected by its listener."""
    actor = Actor({"stop": LEFT(), "request_stop": LEFT()})
    agent = RayAgent(0, 1, actor)
    agent.stop()
    agent.request_stop()
    assert actor.called == [("stop",), ("request_stop",)]
    assert waits == []


def test_a_start_is_accepted_later(waits: list[tuple[str, float | None]]) -> None:
    generation = Generation(3, 2, "file:///x")
    actor = Actor()
    accepted = RayAgent(0, 1, actor).start(generation)
    assert actor.called == [("start", generation)]
    assert waits == []
    accepted()
    ((name, timeout_s),) = waits
    assert (name, bool(timeout_s)) == ("start", True)


@pytest.mark.parametrize("cause", [CheckpointError("none"), InputError("a", "b", "c"), OSError(28, "No space left")])
def test_errors_of_the_model_process_are_raised(cause: Exception, waits: list[tuple[str, float | None]]) -> None:
    with pytest.raises(type(cause)) as caught:
        RayAgent(0, 1, Actor({"run_request": raised_there(cause)})).run_request(QUESTION)
    assert caught.value is cause


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (raised_there(KeyError("x")), "agent 4 failed: KeyError: 'x'"),
        (GetTimeoutError("too late\nand more"), "agent 4 is lost: it did not respond in time"),
        (ActorDiedError(), "agent 4 is lost: its process died"),
        (RayError("the node is gone"), "agent 4 is lost: Ray has failed: the node is gone"),
    ],
)
def test_an_agent_that_fails_is_lost(error: Exception, message: str, waits: list[tuple[str, float | None]]) -> None:
    with pytest.raises(AgentLostError) as caught:
        RayAgent(4, 1, Actor({"snapshot": error})).snapshot()
    assert (caught.value.index, str(caught.value)) == (4, message)


# Gangs ------------------------------------------------------------------------------------------------------------


class Group:
    """A placement group that is ready after some checks."""

    def __init__(self, bundles: list[dict[str, float]], looks: int = 0) -> None:
        self.bundle_specs, self.looks = bundles, looks

    def wait(self, _: float) -> bool:
        self.looks -= 1
        return self.looks < 0


class FakeRay:
    """The Ray calls that a gang makes, and their state."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.groups: dict[str, Group] = {}
        self.actors: dict[str, Actor] = {}
        self.nodes = ["node-a", "node-b"]
        self.looks = 0
        self.wanted_where: list[dict[str, str]] = []
        self.options: list[dict[str, Any]] = []
        self.tasks: list[Any] = []
        self.killed: list[Actor] = []
        monkeypatch.setattr(gang, "usable_nodes", lambda: [Node(node, 8, 0) for node in self.nodes])
        monkeypatch.setattr(gang, "get_placement_group", self.find_group)
        monkeypatch.setattr(gang, "placement_group", self.make_group)
        monkeypatch.setattr(gang, "remove_placement_group", self.remove_group)
        monkeypatch.setattr(gang, "PlacementGroupSchedulingStrategy", lambda group, **where: (group, where))
        monkeypatch.setattr(gang.ray, "remote", lambda _: SimpleNamespace(options=self.with_options))
        monkeypatch.setattr(gang.ray, "get_actor", self.find_actor)
        monkeypatch.setattr(gang.ray, "kill", self.killed.append)

    def find_group(self, name: str) -> Group:
        if name not in self.groups:
            raise ValueError(name)
        return self.groups[name]

    def make_group(self, bundles: Any, _: str, name: str, bundle_label_selector: Any, **__: Any) -> Group:
        self.groups[name] = Group(bundles, self.looks)
        self.wanted_where = bundle_label_selector
        return self.groups[name]

    def remove_group(self, group: Group) -> None:
        self.groups = {name: each for name, each in self.groups.items() if each is not group}

    def find_actor(self, name: str) -> Actor:
        if name not in self.actors:
            raise ValueError(f"no actor {name}")
        return self.actors[name]

    def with_options(self, **options: Any) -> Any:
        def remote(task: Any) -> Actor:
            self.options.append(options)
            self.tasks.append(task)
            return self.actors.setdefault(options["name"], Actor())

        return SimpleNamespace(remote=remote)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, waits: list[tuple[str, float | None]]) -> FakeRay:
    return FakeRay(monkeypatch)


PLACEMENT = (("node-a", 2), ("node-b", 1))


def always() -> bool:
    return True


def test_a_gang_has_an_agent_on_each_node(fake: FakeRay, tmp_path: Path) -> None:
    agents = RayGang("toy-1", 2, 1, RunFolder(tmp_path)).place("data", PLACEMENT, always)
    assert [(agent.index, agent.ranks) for agent in agents] == [(0, 2), (1, 1)]
    assert fake.groups["toy-1"].bundle_specs == [{"CPU": 4.0, "GPU": 2.0}, {"CPU": 2.0, "GPU": 1.0}]
    assert fake.wanted_where == [{"ray.io/node-id": "node-a"}, {"ray.io/node-id": "node-b"}]
    assert [options["name"] for options in fake.options] == ["toy-1/agent-0", "toy-1/agent-1"]
    assert [(options["num_cpus"], options["num_gpus"]) for options in fake.options] == [(4.0, 2.0), (2.0, 1.0)]
    assert all(options["get_if_exists"] for options in fake.options)
    assert [(task.first_rank, task.ranks, task.threads, task.gpus) for task in fake.tasks] == [
        (0, 2, 2, 1),
        (2, 1, 2, 1),
    ]
    assert [task.successor for task in fake.tasks] == ["toy-1/agent-1", "toy-1/agent-0"]
    assert all(task.several_nodes for task in fake.tasks)


def test_a_gang_on_cpus_asks_for_no_gpu(fake: FakeRay, tmp_path: Path) -> None:
    fake.nodes = ["node-a"]
    RayGang("toy-1", 1, 0, RunFolder(tmp_path)).place("data", (("node-a", 2),), always)
    assert fake.groups["toy-1"].bundle_specs == [{"CPU": 2.0}]
    assert (fake.options[0]["num_gpus"], fake.tasks[0].successor, fake.tasks[0].several_nodes) == (0, "", False)


def test_an_existing_placement_group_is_reused(fake: FakeRay, tmp_path: Path) -> None:
    run_gang = RayGang("toy-1", 1, 0, RunFolder(tmp_path))
    run_gang.place("data", PLACEMENT, always)
    before = fake.groups["toy-1"], fake.actors["toy-1/agent-0"]
    del fake.actors["toy-1/agent-1"]
    run_gang.place("data", PLACEMENT, always)
    assert (fake.groups["toy-1"], fake.actors["toy-1/agent-0"]) == before
    assert fake.actors.keys() == {"toy-1/agent-0", "toy-1/agent-1"}


def test_a_gang_that_is_not_wanted_is_not_created(fake: FakeRay, tmp_path: Path) -> None:
    run_gang = RayGang("toy-1", 1, 0, RunFolder(tmp_path))
    assert run_gang.place("data", PLACEMENT, lambda: False) == []
    assert fake.groups == {}
    fake.looks = 3
    answers = iter([True, True, False])
    assert run_gang.place("data", PLACEMENT, lambda: next(answers)) == []
    assert fake.actors == {}


def test_a_node_that_leaves_ends_the_wait(fake: FakeRay, tmp_path: Path) -> None:
    fake.looks = 1000

    def leave() -> bool:
        fake.nodes = ["node-a"]
        return True

    with pytest.raises(NodesGoneError) as caught:
        RayGang("toy-1", 1, 0, RunFolder(tmp_path)).place("data", PLACEMENT, leave)
    assert caught.value.nodes == ["node-b"]


def test_agents_are_found_by_name(fake: FakeRay, tmp_path: Path) -> None:
    fake.actors = {"toy-1/agent-0": Actor(), "toy-1/agent-1": Actor()}
    run_gang = RayGang("toy-1", 1, 0, RunFolder(tmp_path))
    assert [(agent.index, agent.ranks) for agent in run_gang.attach(PLACEMENT)] == [(0, 2), (1, 1)]
    del fake.actors["toy-1/agent-1"]
    with pytest.raises(AgentLostError) as caught:
        run_gang.attach(PLACEMENT)
    assert caught.value.index == 1


def test_ranks_of_one_node_use_a_file_rendezvous(fake: FakeRay, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    actor = Actor()
    run_gang = RayGang("toy-1", 1, 0, folder)
    (tmp_path / "rendezvous").mkdir()
    (tmp_path / "rendezvous" / "generation-1").touch()
    run_gang.start([RayAgent(0, 2, actor)], 2)
    assert actor.called == [("start", Generation(2, 2, f"{tmp_path}/rendezvous/generation-2"))]
    assert list((tmp_path / "rendezvous").iterdir()) == [], "what an older generation has left would be joined"


def test_ranks_of_several_nodes_use_the_first_node_as_rendezvous(
    fake: FakeRay, waits: list[tuple[str, float | None]], tmp_path: Path
) -> None:
    actors = [Actor({"address": Address("10.0.0.1", 4242)}), Actor()]
    agents = [RayAgent(0, 2, actors[0]), RayAgent(1, 1, actors[1])]
    RayGang("toy-1", 1, 0, RunFolder(tmp_path)).start(agents, 5)
    generation = Generation(5, 3, "tcp://10.0.0.1:4242")
    assert actors[1].called == [("start", generation)]
    assert [name for name, _ in waits] == ["address", "start", "start"]


@pytest.mark.parametrize("keep", [False, True])
def test_a_release_ends_agents_and_their_copies(keep: bool, fake: FakeRay, tmp_path: Path) -> None:
    run_gang = RayGang("toy-1", 1, 0, RunFolder(tmp_path))
    run_gang.place("data", PLACEMENT, always)
    dying = fake.actors["toy-1/agent-0"]
    dying.answers["remove_copies"] = LEFT()
    del fake.actors["toy-1/agent-1"]
    run_gang.release(keep_copies=keep)
    assert fake.killed == [dying]
    assert dying.called == ([] if keep else [("remove_copies",)])
    assert fake.groups == {}
    run_gang.release()
    assert fake.killed == [dying]


# Nodes ------------------------------------------------------------------------------------------------------------


def node(name: str, alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"NodeID": name, "NodeManagerAddress": f"at-{name}", "Alive": alive, "Resources": resources}


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replace Ray's list of nodes."""
    found = [node("a", CPU=8.0, GPU=2.0), node("b", CPU=4.0), node("c"), node("dead", alive=False, CPU=8.0)]
    monkeypatch.setattr(nodes.ray, "nodes", lambda: found)
    monkeypatch.setattr(ray_internals, "draining_nodes", lambda: {"b", "dead"})
    return found


def test_live_nodes_are_usable(listed: list[dict[str, Any]]) -> None:
    assert nodes.usable_nodes() == [
        Node("a", 8.0, 2.0, False, "at-a"),
        Node("b", 4.0, 0.0, True, "at-b"),
        Node("c", 0.0, 0.0, False, "at-c"),
    ]


def test_the_head_does_not_leave(listed: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    here = SimpleNamespace(get_node_id=lambda: "a", gcs_address="10.0.0.1:6379")
    monkeypatch.setattr(nodes.ray, "get_runtime_context", lambda: here)
    assert nodes.this_node() == ("a", "10.0.0.1:6379")
    listed[0]["Resources"][nodes.HEAD] = 1.0
    with pytest.raises(InputError, match="the head"):
        nodes.this_node()


class Leaving:
    """A cluster's GCS while a node leaves: the resources in use at each check."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
        self.uses: Iterator[Any] = iter(())
        self.drained: list[tuple[Any, ...]] = []
        self.accepts = True
        self._clock = clock
        monkeypatch.setattr(nodes, "_POLL_INTERVAL_S", 0.0)
        monkeypatch.setattr(nodes, "time", clock)
        monkeypatch.setattr(ray_internals, "resources_in_use", self.resources_in_use)
        monkeypatch.setattr(ray_internals, "drain_node", self.drain)

    def resources_in_use(self, _: str) -> Any:
        self._clock.now += 1
        found = next(self.uses)
        if isinstance(found, Exception):
            raise found
        return found

    def drain(self, *arguments: Any) -> bool:
        self.drained.append(arguments)
        return self.accepts


@pytest.fixture
def leaving(monkeypatch: pytest.MonkeyPatch) -> Leaving:
    return Leaving(monkeypatch, Clock(1000.0))


BUSY, UNUSED = {"a": {"CPU": 2.0, "memory": 1.0}}, {"a": {"memory": 1.0}}


def test_a_node_has_left_when_its_cpus_are_unused(leaving: Leaving) -> None:
    leaving.uses = iter([BUSY, BUSY, RpcError("the head restarts"), BUSY, UNUSED])
    assert nodes.leave("a", "gcs", 60.0, "spot")
    assert leaving.drained == [("a", "gcs", 1060.0, "spot")]
    leaving.uses = iter([BUSY, {}])
    assert nodes.leave("a", "gcs", 60.0, "spot"), "one that is gone uses nothing"


def test_a_node_may_be_too_late(leaving: Leaving) -> None:
    leaving.uses = iter([BUSY] * 20)
    assert not nodes.leave("a", "gcs", 5.0, "spot")


def test_an_unavailable_head_is_retried(leaving: Leaving) -> None:
    leaving.uses = iter([RpcError("away"), RpcError("away"), BUSY, UNUSED])
    assert nodes.leave("a", "gcs", 60.0, "spot")
    leaving.uses = iter([RpcError("away")] * 20)
    assert not nodes.leave("a", "gcs", 5.0, "spot")


def test_a_node_that_is_not_accepted_is_announced_again(leaving: Leaving) -> None:
    leaving.accepts = False
    leaving.uses = iter([BUSY] * 20)
    assert not nodes.leave("a", "gcs", 5.0, "spot")
    assert len(leaving.drained) > 1


def test_a_node_of_another_cluster_is_rejected(leaving: Leaving) -> None:
    leaving.uses = iter([BUSY])
    with pytest.raises(InputError, match="a node of the cluster"):
        nodes.leave("z" * 20, "gcs", 60.0, "spot")
    assert leaving.drained == []


# Devices ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_nodes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def be(*resources: dict[str, float]) -> None:
        found = [node(str(number), **each) for number, each in enumerate(resources)]
        monkeypatch.setattr(devices.ray, "nodes", lambda: [*found, node("dead", alive=False, CPU=64.0, memory=1.0)])

    return be


def test_workers_on_cpus_have_the_least_of_any_node(with_nodes: Callable[..., None]) -> None:
    with_nodes({"CPU": 8.0, "memory": 64e9}, {"CPU": 4.0, "memory": 8e9}, {"CPU": 1.0, "memory": 1e9})
    found = hardware_for(3, 2, 0)
    assert (found.workers, found.nodes, found.gpu, found.worker_bytes) == (3, 1, None, 4e9)


def test_workers_on_gpus_have_the_least_of_any_kind(with_nodes: Callable[..., None]) -> None:
    h100 = {"CPU": 8.0, "GPU": 4.0, "memory": 64e9, "accelerator_type:H100": 1.0}
    l4 = {"CPU": 8.0, "GPU": 2.0, "memory": 64e9, "accelerator_type:L4": 1.0}
    with_nodes(h100, {"CPU": 8.0, "memory": 1e9})
    assert (hardware_for(6, 1, 1).gpu, hardware_for(6, 1, 1).nodes) == (gpu("h100", ""), 2)
    with_nodes(h100, l4)
    assert (hardware_for(5, 1, 1).gpu, hardware_for(5, 1, 1).nodes) == (gpu("l4", ""), 3)


def test_unknown_gpus_are_rejected(with_nodes: Callable[..., None]) -> None:
    with_nodes({"CPU": 8.0, "GPU": 4.0, "memory": 64e9})
    with pytest.raises(InputError, match="Ray does not report the GPU type"):
        hardware_for(1, 1, 1)
    with_nodes({"CPU": 8.0, "GPU": 4.0, "memory": 64e9, "accelerator_type:ABACUS": 1.0})
    with pytest.raises(InputError, match="ABACUS"):
        hardware_for(1, 1, 1)


# The autoscaler ---------------------------------------------------------------------------------------------------


def test_resources_are_requested_when_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[list[dict[str, float]]] = []

    def ask(bundles: list[dict[str, float]]) -> None:
        requested.append(bundles)

    monkeypatch.setattr(autoscaler, "request_resources", ask)

    def request(run: str, workers: int, gpus: float) -> Request:
        return Request(run, "ann", "default", 0, 0.0, workers, 1, 2.0, gpus)

    provision = Autoscaler()
    provision([request("a", 2, 0.0), request("b", 1, 1.0)])
    provision([request("b", 1, 1.0), request("c", 2, 0.0)])  # the same room, for another
    provision([])
    provision([])
    cpus, both = {"CPU": 2.0}, {"CPU": 2.0, "GPU": 1.0}
    assert [sorted(bundles, key=str) for bundles in requested] == [sorted([cpus, cpus, both], key=str), []]
