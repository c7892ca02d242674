"""All uses of Ray beyond its public API; no other module uses private names of Ray.

Written for and tested with Ray 2.60. Private names may change with any minor release, so `pyproject.toml` limits Ray's
version; check each function here before raising that limit.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from drivetrain_pipelines.storage.json_files import JsonObject
from ray._common.utils import get_ray_address_file
from ray._private import ray_constants
from ray._raylet import Config, GcsClient  # type: ignore[attr-defined]  # compiled
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.core.generated import autoscaler_pb2

_RPC_TIMEOUT_S = 5

logging.getLogger("ray.autoscaler._private.util").setLevel(logging.WARNING)  # it logs the defaults that it fills in


def draining_nodes() -> set[str]:
    """Return the ids of the draining nodes of the cluster that this process is connected to.

    Ray Train and Ray Serve use the same call.
    """
    return set(ray._private.state.state.get_draining_nodes())


def resources_in_use(gcs_address: str) -> dict[str, Mapping[str, float]]:
    """Return the resources in use on each living node, by node id and name of the resource.

    Raises:
        RpcError: the cluster does not respond.
    """
    status = get_cluster_status(gcs_address, _RPC_TIMEOUT_S)
    nodes = {node.node_id: node.used_resources() for node in (*status.idle_nodes, *status.active_nodes)}
    return {node: used for node, used in nodes.items() if node}


def drain_node(node: str, gcs_address: str, deadline: float, why: str) -> bool:
    """Announce the preemption of a node, as `ray drain-node` does; Ray also accepts unknown nodes.

    Args:
        node: its id.
        gcs_address: of the cluster's GCS.
        deadline: in seconds since the epoch.
        why: reason for logs.

    Returns:
        Whether Ray has accepted the request.

    Raises:
        RpcError: the cluster does not respond.
    """
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")  # type: ignore[attr-defined]
    accepted, _ = GcsClient(gcs_address).drain_node(node, reason, why, int(deadline * 1000), _RPC_TIMEOUT_S)
    return bool(accepted)


def address_file() -> Path:
    """Return the file in which `ray start` stores the address of this machine's cluster."""
    return Path(get_ray_address_file(None))


def enable_token_auth() -> None:
    """Authenticate with Ray's token in this process, unless ``RAY_AUTH_MODE`` is set."""
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        Config.initialize("")  # Ray has read the variable when it was imported


@contextmanager
def only_on_loopback() -> Iterator[None]:
    """Make a cluster that is started in this block listen on 127.0.0.1 only.

    Ray has no public option for this: it replaces loopback addresses by network addresses.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def complete_cluster_config(written: JsonObject) -> JsonObject:
    """Return the content of a cluster file with the launcher's defaults.

    Raises:
        jsonschema.ValidationError: the content violates the launcher's schema.
        ValueError, KeyError, TypeError, AttributeError: the launcher cannot use the content.
    """
    config: JsonObject = prepare_config(written)
    validate_config(config)
    return config


def node_provider(config: Mapping[str, Any]) -> Any:
    """Return the launcher's `NodeProvider` for a complete cluster file; it queries the cloud, not a cache."""
    return _get_node_provider(config["provider"], config["cluster_name"], use_cache=False)
