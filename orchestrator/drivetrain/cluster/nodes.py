"""The nodes of the Ray cluster, as the scheduler sees them; and how one of them goes."""

from __future__ import annotations

import time
from contextlib import suppress

import ray
from drivetrain_pipelines.errors import InputError
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.core.generated import autoscaler_pb2
from ray.exceptions import RpcError

from drivetrain.scheduling.model import Node

HEAD = "node:__internal_head__"  # the resource that Ray gives to the head alone
_LOOK_S = 0.5
_ANSWER_S = 5


def usable_nodes() -> list[Node]:
    """The nodes that live, and which of them were told to leave (by `leave`, or `ray drain-node`)."""
    # Ray has no public way to ask; its own Train and Serve ask like this.
    draining = ray._private.state.state.get_draining_nodes()
    return [
        Node(
            node["NodeID"],
            node["Resources"].get("CPU", 0.0),
            node["Resources"].get("GPU", 0.0),
            node["NodeID"] in draining,
            node["NodeManagerAddress"],
        )
        for node in ray.nodes()  # type: ignore[no-untyped-call]  # Ray's
        if node["Alive"]
    ]


def this_node() -> tuple[str, str]:
    """The id of the node that this process is connected to, and the address of its cluster's GCS.

    Raises:
        InputError: it is the head, without which the cluster cannot be.
    """
    here = ray.get_runtime_context()
    node = here.get_node_id()
    resources = next(each["Resources"] for each in ray.nodes() if each["NodeID"] == node)  # type: ignore[no-untyped-call]
    if HEAD in resources:
        raise InputError("node", "the head", "one beside it", "A whole cluster is ended by `ray stop` on its head.")
    return node, here.gcs_address


def leave(node: str, gcs_address: str, within_s: float, why: str) -> bool:
    """Tell a cluster that a node is about to go, for good, and wait until nobody computes there any more.

    Nobody who does this may be connected to the node: Ray ends it as soon as it is idle.

    Args:
        node: its id.
        gcs_address: of the cluster's GCS; while it is away it is asked again, which takes Ray up to 40 s each time.
        within_s: seconds until it is gone.
        why: for logs.

    Returns:
        Whether everybody left in time.

    Raises:
        InputError: the cluster has no such node.
    """
    until, told = time.time() + within_s, False
    while True:
        with suppress(RpcError):  # a head that is started anew; it is asked again
            told = told or _tell(node, gcs_address, until, why)
            if told and not _in_use(node, gcs_address):
                return True
        if time.time() >= until:
            return False
        time.sleep(_LOOK_S)


def _tell(node: str, gcs_address: str, until: float, why: str) -> bool:
    """As `ray drain-node` does. A preemption is not refused, not even one of a node that is not there."""
    there = get_cluster_status(gcs_address, _ANSWER_S)
    if not any(each.node_id == node for each in (*there.active_nodes, *there.idle_nodes)):
        raise InputError("node", node[:12], "one of the cluster", "If Ray was started anew here, start this anew, too.")
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")  # type: ignore[attr-defined]
    accepted, _ = GcsClient(gcs_address).drain_node(node, reason, why, int(until * 1000), _ANSWER_S)
    return bool(accepted)


def _in_use(node: str, gcs_address: str) -> bool:
    there = [each for each in get_cluster_status(gcs_address, _ANSWER_S).active_nodes if each.node_id == node]
    return any(each.used_resources().get(kind) for each in there for kind in ("CPU", "GPU"))
