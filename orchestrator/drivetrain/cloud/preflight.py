"""Checks of credentials, machine types and quotas of a cloud, before a cluster starts."""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from typing import Any

from drivetrain_pipelines.errors import InputError

from drivetrain.cloud.cluster_file import ClusterFile, NodeGroup

# Quotas for virtual CPUs by family, on demand and spot (Service Quotas, service "ec2").
_QUOTAS = {
    "standard": ("L-1216C47A", "L-34B43A08"),
    "g": ("L-DB2E81BA", "L-3819A6DF"),
    "p": ("L-417A185B", "L-7212CCBC"),
    "p5": ("L-417A185B", "L-C4BD4855"),
}
_CLIENTS = {
    "aws": ("boto3", "boto3"),
    "gcp": ("googleapiclient", "google-api-python-client"),
    "azure": ("azure.identity", "azure-identity"),
}


def preflight(file: ClusterFile) -> list[str]:
    """Check a cluster file against the cloud; return what could not be checked.

    Raises:
        InputError: the cloud would reject the cluster.
    """
    module, package = _CLIENTS[file.cloud]
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if not found:
        raise InputError(
            f"{file.path}: provider.type", file.cloud, "a cloud with an installed client", f"pip install {package}"
        )
    if file.cloud == "aws":
        return _aws(file)
    return [f"quotas and credentials of {file.cloud}; check them in its console"]


def _aws(file: ClusterFile) -> list[str]:
    import boto3  # here: needed only for this cloud
    from botocore.exceptions import BotoCoreError, ClientError

    region = file.config["provider"]["region"]
    session = boto3.Session(region_name=region)
    try:
        session.client("sts").get_caller_identity()
    except (BotoCoreError, ClientError) as error:
        raise InputError("AWS credentials", str(error), "valid credentials", "Run `aws configure`.") from error
    machines = sorted({group.machine for group in (file.head, *file.workers)})
    try:
        offered = _offered(session, file, machines)
        found = session.client("ec2").describe_instance_types(InstanceTypes=sorted(offered))["InstanceTypes"]
    except (BotoCoreError, ClientError) as error:
        raise InputError(
            f"{file.path}: provider", str(error), "a region and zones available to this account"
        ) from error
    if missing := [machine for machine in machines if machine not in offered]:
        zones = file.config["provider"].get("availability_zone", region)
        where = f"{file.path}: available_node_types"
        raise InputError(where, ", ".join(missing), f"machine types available in {zones}", "Try another zone.")
    cpus = {entry["InstanceType"]: entry["VCpuInfo"]["DefaultVCpus"] for entry in found}
    unknown = []
    for code, needed in needed_cpus(file, cpus).items():
        try:
            quota = session.client("service-quotas").get_service_quota(ServiceCode="ec2", QuotaCode=code)
        except (BotoCoreError, ClientError) as error:
            unknown.append(f"quota {code}: {error}")
            continue
        if (limit := quota["Quota"]["Value"]) < needed:
            fix = f"Ask AWS to raise quota {code} in {region}, or lower max_workers."
            raise InputError(
                f"{file.path}: max_workers", f"{needed} virtual CPUs", f"at most {limit:g}, your quota", fix
            )
    return unknown


def _offered(session: Any, file: ClusterFile, machines: list[str]) -> set[str]:
    zones = file.config["provider"].get("availability_zone")
    names = {"availability-zone": zones.split(",")} if zones else {"region": [file.config["provider"]["region"]]}
    ((kind, locations),) = names.items()
    filters = [{"Name": "location", "Values": locations}, {"Name": "instance-type", "Values": machines}]
    answer = session.client("ec2").describe_instance_type_offerings(LocationType=kind, Filters=filters)
    return {offering["InstanceType"] for offering in answer["InstanceTypeOfferings"]}


def needed_cpus(file: ClusterFile, cpus: dict[str, int]) -> dict[str, int]:
    """Return the virtual CPUs of a cluster at its maximum size, by quota.

    Args:
        file: of the cluster.
        cpus: virtual CPUs by machine type.
    """
    counted: dict[str, dict[str, float]] = defaultdict(dict)  # CPUs of a node, by quota and group
    for group in file.workers:
        counted[_quota(group)][group.name] = cpus[group.machine]
    needed = {code: int(file.most_of(each)) for code, each in counted.items()}
    code = _quota(file.head)
    return {**needed, code: needed.get(code, 0) + cpus[file.head.machine]}


def _quota(group: NodeGroup) -> str:
    family = group.machine.partition(".")[0]
    kind = "p5" if family.startswith("p5") else family[0] if family[0] in "gp" else "standard"
    return _QUOTAS[kind][group.spot]
