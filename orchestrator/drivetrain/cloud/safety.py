"""Checks for unsafe settings of a cluster file, including unsafe defaults of Ray's launcher."""

from __future__ import annotations

import re
from collections.abc import Iterator

from drivetrain_pipelines.errors import InputError

from drivetrain.cloud.cluster_file import ClusterFile

_OPEN_DASHBOARD = re.compile(r"--dashboard-host[= ]\S*0\.0\.0\.0")
_ANYWHERE = ("0.0.0.0/0", "::/0")


def check_safety(file: ClusterFile) -> None:
    """Reject a file with which a cluster would be open to others, or would run unpinned software.

    Raises:
        InputError: for the first unsafe setting.
    """
    for error in _unsafe(file):
        raise error


def _unsafe(file: ClusterFile) -> Iterator[InputError]:
    config, path = file.config, file.path
    for key in ("setup_commands", "head_setup_commands", "worker_setup_commands", "initialization_commands"):
        for command in config.get(key, []):
            if "ray-wheels/latest" in command:
                fix = f"Set {key}; Ray's defaults install a nightly build."
                yield InputError(f"{path}: {key}", command, "released versions", fix)
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [command for command in config[key] if "ray start" in command]
        if not starts or not all("RAY_AUTH_MODE=token" in command for command in starts):
            fix = "Without it, anyone who can reach Ray's ports can run code."
            yield InputError(f"{path}: {key}", "no RAY_AUTH_MODE=token", "RAY_AUTH_MODE=token before `ray start`", fix)
        if any(_OPEN_DASHBOARD.search(command) for command in starts):
            yield InputError(
                f"{path}: {key}", "--dashboard-host=0.0.0.0", "127.0.0.1; use `ray dashboard` for a tunnel"
            )
    if config["provider"].get("cache_stopped_nodes", True):
        fix = "Stopped machines keep their disks, which are billed."
        yield InputError(f"{path}: provider.cache_stopped_nodes", "true", "false", fix)
    if file.cloud == "aws":
        yield from _unsafe_on_aws(file)
    if file.cloud == "gcp":
        yield from _unsafe_on_gcp(file)


def _unsafe_on_aws(file: ClusterFile) -> Iterator[InputError]:
    provider, path = file.config["provider"], file.path
    rules = provider.get("security_group", {}).get("IpPermissions", [])
    ranges = [entry for rule in rules for key in ("IpRanges", "Ipv6Ranges") for entry in rule.get(key, [])]
    for address in (entry.get("CidrIp") or entry.get("CidrIpv6") for entry in ranges):
        if address in _ANYWHERE:
            key = f"{path}: provider.security_group.IpPermissions"
            yield InputError(key, address, "your address range")
    for group in (file.head, *file.workers):
        where = f"{path}: available_node_types.{group.name}.node_config"
        if not group.config.get("SecurityGroupIds"):
            fix = "Ray would create a group that opens port 22 to the Internet; infra/terraform/aws creates a safe one."
            yield InputError(f"{where}.SecurityGroupIds", "nothing", "ids of security groups", fix)
    if not file.head.config.get("IamInstanceProfile"):
        fix = "Ray would create a role with full access to EC2 and S3; infra/terraform/aws creates a minimal one."
        key = f"{path}: available_node_types.{file.head.name}.node_config.IamInstanceProfile"
        yield InputError(key, "nothing", "an instance profile", fix)


def _unsafe_on_gcp(file: ClusterFile) -> Iterator[InputError]:
    for group in (file.head, *file.workers):
        where = f"{file.path}: available_node_types.{group.name}.node_config"
        if not group.config.get("serviceAccounts"):
            fix = "Ray would create an account with full access to machines and storage."
            yield InputError(f"{where}.serviceAccounts", "nothing", "an account with minimal permissions", fix)
        if not group.config.get("networkInterfaces"):
            fix = "On the project's default network, port 22 is open to the Internet."
            yield InputError(f"{where}.networkInterfaces", "nothing", "your subnetwork", fix)
