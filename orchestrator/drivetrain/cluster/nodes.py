"""The nodes of the Ray cluster, as the scheduler sees them; and how one of them goes."""

from __future__ import annotations

import time

import ray
from drivetrain_pipelines.errors import InputError
from ray.exceptions import RpcError
from tenacity import Retrying, retry_if_exception_type, retry_if_not_result, wait_fixed

from drivetrain.cluster import ray_internals
from drivetrain.scheduling.model import Node

HEAD = "node:__internal_head__"  # the resource that Ray gives to the head alone
_POLL_INTERVAL_S = 0.5


def usable_nodes() -> list[Node]:
    """The nodes that live, and which of them were told to leave (by `leave`, or `ray drain-node`)."""
    draining = ray_internals.draining_nodes()
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
    until = time.time() + within_s
    retrying = Retrying(
        retry=retry_if_exception_type(RpcError) | retry_if_not_result(bool),  # the head may be restarting
        stop=lambda _: time.time() >= until,
        wait=wait_fixed(_POLL_INTERVAL_S),
        retry_error_callback=lambda _: False,
    )
    return retrying(_announce, node, gcs_address, until, why) and retrying(_is_unused, node, gcs_address)


def _announce(node: str, gcs_address: str, until: float, why: str) -> bool:
    if node not in ray_internals.resources_in_use(gcs_address):
        raise InputError("node", node[:12], "one of the cluster", "If Ray was restarted here, restart this, too.")
    return ray_internals.drain_node(node, gcs_address, until, why)


def _is_unused(node: str, gcs_address: str) -> bool:
    used = ray_internals.resources_in_use(gcs_address).get(node, {})
    return not any(used.get(kind) for kind in ("CPU", "GPU"))
