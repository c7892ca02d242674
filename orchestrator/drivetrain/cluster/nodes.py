"""The nodes of the Ray cluster, as the scheduler sees them; and how one of them goes."""

from __future__ import annotations

import time

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.core.generated import autoscaler_pb2

from drivetrain.scheduling.model import Node

_LOOK_S = 0.5


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
    """The id of the node that this process is connected to, and the address of its cluster's GCS."""
    here = ray.get_runtime_context()
    return here.get_node_id(), here.gcs_address


def leave(node: str, gcs_address: str, within_s: float, why: str) -> bool:
    """Tell a cluster that a node is about to go, and wait until nobody computes there any more.

    Nobody who does this may be connected to the node: Ray ends it as soon as it is idle.

    Args:
        node: its id.
        gcs_address: of the cluster's GCS.
        within_s: seconds until it is gone; Ray ends it then at the latest.
        why: for logs.

    Returns:
        Whether everybody left in time.
    """
    until = time.time() + within_s
    preemption = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")  # type: ignore[attr-defined]
    GcsClient(gcs_address).drain_node(node, preemption, why, int(until * 1000))  # as `ray drain-node` does
    while time.time() < until:
        in_use = [each for each in get_cluster_status(gcs_address).active_nodes if each.node_id == node]
        if not any(each.used_resources().get(kind) for each in in_use for kind in ("CPU", "GPU")):
            return True
        time.sleep(_LOOK_S)
    return False
