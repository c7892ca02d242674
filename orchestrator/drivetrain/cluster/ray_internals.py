"""All uses of Ray beyond its public API; no other module uses private names of Ray.

Written for and tested with Ray 2.60. Private names may change with any minor release, so `pyproject.toml` limits Ray's
version; check each function here before raising that limit.
"""

from __future__ import annotations

import logging
import os
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import grpc  # type: ignore[import-untyped]  # it has no types
import ray
from drivetrain_pipelines.storage.json_files import JsonObject
from ray._common.utils import get_ray_address_file
from ray._private import ray_constants, worker
from ray._private.grpc_utils import init_grpc_channel
from ray._private.node import Node
from ray._raylet import AuthenticationTokenLoader, Config, GcsClient  # type: ignore[attr-defined]  # compiled
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.core.generated import autoscaler_pb2, gcs_service_pb2, gcs_service_pb2_grpc

VERSION = ray.__version__
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


@dataclass(frozen=True)
class Answer:
    """What answers at the address of a Ray cluster.

    Attributes:
        runs: whether it is the GCS of a cluster.
        wants_token: whether it refuses this process for want of the right token.
        version: of Ray; empty unless it accepts this process.
        problem: what happened instead of an answer.
    """

    runs: bool
    wants_token: bool = False
    version: str = ""
    problem: str = ""


def ask(address: str) -> Answer:
    """Ask the GCS at an address whether it runs. `ray.init` would try for minutes, and not say what is wrong.

    Args:
        address: ``HOST:PORT``.
    """
    direct = [("grpc.enable_http_proxy", 0)]
    request = gcs_service_pb2.CheckAliveRequest()  # type: ignore[attr-defined]
    with closing(init_grpc_channel(address, direct)) as channel:
        try:
            service = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)  # type: ignore[no-untyped-call]
            return Answer(True, version=service.CheckAlive(request, timeout=_RPC_TIMEOUT_S).ray_version)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                return Answer(True, wants_token=True)
            return Answer(False, problem=_first_line(error.details()))
        except ray.exceptions.AuthenticationError:  # RAY_AUTH_MODE=token without a token
            return Answer(True, wants_token=True)


def has_token() -> bool:
    """Return whether this user has Ray's token."""
    try:
        return bool(AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))
    except ray.exceptions.AuthenticationError:  # RAY_AUTH_TOKEN_PATH names no file
        return False


def _first_line(text: str | None) -> str:
    """Return the part of an error of gRPC that says what happened."""
    said = (text or "no answer").partition("\n")[0].rpartition("last error: ")[2]
    return re.sub(r"^[A-Z]+: ipv[46]:\S+ ", "", said)[:200]


def end_failed_start(error: BaseException) -> Path | None:
    """Kill the processes of a cluster whose start has failed with an error; return the folder of its logs."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if isinstance(node := frame.f_locals.get("self"), Node):
            node.kill_all_processes(check_alive=False, allow_graceful=False)
            return Path(node.get_logs_dir_path())  # type: ignore[no-untyped-call]
    return None


@contextmanager
def messages_to(file: TextIO) -> Iterator[None]:
    """Write Ray's messages about tasks and nodes to a file. Ray prints them on stdout, also without its logs."""
    before = worker.print_to_stdstream

    def write(data: Any, ignore_prefix: bool) -> None:  # noqa: ARG001  # Ray's
        with suppress(OSError):  # on a full disk, messages are the first to do without
            file.write("".join(f"{line}\n" for line in data["lines"]))
            file.flush()

    worker.print_to_stdstream = write
    try:
        yield
    finally:
        worker.print_to_stdstream = before


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
