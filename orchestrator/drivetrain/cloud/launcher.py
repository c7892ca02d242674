"""Ray's cluster launcher: create, list and remove nodes."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_NODE_STATUS, TAG_RAY_USER_NODE_TYPE

from drivetrain.cloud.cluster_file import ClusterFile
from drivetrain.cluster.ray_internals import node_provider
from drivetrain.errors import LauncherError
from drivetrain.private_files import write_private

_TERMINATION_TIMEOUT_S = 300.0
_POLL_INTERVAL_S = 2.0


@dataclass(frozen=True)
class CloudNode:
    """A machine of a cluster.

    Attributes:
        group: its node group in the cluster file.
        status: its status in Ray's launcher.
        price: dollars per hour, if the file contains it.
    """

    id: str
    kind: str
    group: str
    address: str
    status: str
    price: float | None


def up(file: ClusterFile) -> None:
    """Create the cluster, or update it to the file. Raises LauncherError."""
    ensure_ray_token()
    _ray("up", file)


def down(file: ClusterFile) -> None:
    """Remove every machine; return when the cloud lists none of them. Raises LauncherError."""
    _ray("down", file)
    deadline = time.monotonic() + _TERMINATION_TIMEOUT_S
    while left := nodes(file):
        if time.monotonic() > deadline:
            ids = ", ".join(node.id for node in left)
            raise LauncherError(f"machines still running and billed: {ids}; terminate them in the cloud's console")
        time.sleep(_POLL_INTERVAL_S)


def nodes(file: ClusterFile) -> list[CloudNode]:
    """Return the cluster's machines as listed by the cloud. Raises LauncherError."""
    try:
        return list(_nodes(file))
    except Exception as error:  # errors of any cloud client
        raise LauncherError(f"{file.cloud} cannot be queried: {error}".splitlines()[0]) from error


def _nodes(file: ClusterFile) -> Iterator[CloudNode]:
    groups = {group.name: group for group in (file.head, *file.workers)}
    provider = node_provider(file.config)
    for node in provider.non_terminated_nodes({}):
        tags = provider.node_tags(node)
        group = tags.get(TAG_RAY_USER_NODE_TYPE, "")
        known = groups.get(group)
        yield CloudNode(
            node,
            tags.get(TAG_RAY_NODE_KIND, ""),
            group,
            provider.external_ip(node) or provider.internal_ip(node) or "",
            tags.get(TAG_RAY_NODE_STATUS, ""),
            known.price if known else None,
        )


def ensure_ray_token() -> Path:
    """Create the authentication token of Ray's nodes if it does not exist; return its file."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_private(path, secrets.token_hex(32))
    return path


def _ray(verb: str, file: ClusterFile) -> None:
    command = [str(Path(sys.executable).with_name("ray")), verb, str(file.path), "--yes"]
    if verb == "up":
        command.append("--no-config-cache")
    if subprocess.run(command, check=False, stdout=2).returncode:  # Ray's progress; stdout is for the result
        raise LauncherError(f"`ray {verb} {file.path}` failed; its output is above")
