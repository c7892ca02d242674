"""The nodes of the Ray cluster for the scheduler, and draining of a node."""

from __future__ import annotations

import time

import ray
from drivetrain_pipelines.errors import InputError
from ray.exceptions import RpcError
from tenacity import Retrying, retry_if_exception_type, retry_if_not_result, wait_fixed

from drivetrain.cluster import ray_internals
from drivetrain.scheduling.model import Node

HEAD = "node:__internal_head__"  # a resource of the head node only
_POLL_INTERVAL_S = 0.5


def usable_nodes() -> list[Node]:
    """Return the living nodes, with their draining state (set by `leave` or `ray drain-node`)."""
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
    """Return the id of this process's node, and the address of the cluster's GCS.

    Raises:
        InputError: it is the head, which cannot leave the cluster.
    """
    here = ray.get_runtime_context()
    node = here.get_node_id()
    resources = next(each["Resources"] for each in ray.nodes() if each["NodeID"] == node)  # type: ignore[no-untyped-call]
    if HEAD in resources:
        raise InputError("node", "the head", "a worker node", "To end the whole cluster, run `ray stop` on its head.")
    return node, here.gcs_address


def leave(node: str, gcs_address: str, within_s: float, why: str) -> bool:
    """Drain a node permanently, and wait until no work runs on it.

    The calling process must not be connected to the node: Ray ends the node as soon as it is idle.

    Args:
        node: its id.
        gcs_address: of the cluster's GCS; retried while unavailable, up to 40 s per attempt.
        within_s: seconds until the node shuts down.
        why: reason for logs.

    Returns:
        Whether the node became idle in time.

    Raises:
        InputError: the node is not in the cluster.
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
        raise InputError(
            "node", node[:12], "a node of the cluster", "If Ray was restarted here, restart this command, too."
        )
    return ray_internals.drain_node(node, gcs_address, until, why)


def _is_unused(node: str, gcs_address: str) -> bool:
    used = ray_internals.resources_in_use(gcs_address).get(node, {})
    return not any(used.get(kind) for kind in ("CPU", "GPU"))
