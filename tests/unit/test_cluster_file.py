"""Cluster files: rejected ones, and the prices of valid ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from drivetrain.cloud.cluster_file import ClusterFile
from drivetrain.cloud.preflight import needed_cpus
from drivetrain.cloud.safety import check_safety
from drivetrain_pipelines.errors import InputError

from tests.cluster_files import CLOUDS, FILES, Document, document, load


@pytest.mark.parametrize("cloud_name", CLOUDS)
def test_our_files_are_valid_safe_and_priced(cloud_name: str, tmp_path: Path) -> None:
    file = load(tmp_path, document(cloud_name))
    check_safety(file)
    assert [group.name for group in file.workers] == ["cpu", "gpu", "gpu-spot"]
    assert [group.spot for group in file.workers] == [False, False, True]
    assert [group.least for group in file.workers] == [0, 0, 0]
    assert all(group.gpus for group in file.workers[1:])
    least, most = file.hourly_price()
    assert 0 < least < 1 < most


@pytest.mark.parametrize("cloud_name", CLOUDS)
def test_a_placeholder_is_reported(cloud_name: str) -> None:
    with pytest.raises(InputError, match=r"provider\.(region|location)"):
        ClusterFile(FILES / f"{cloud_name}.yaml")


def _without_auth(file: Document) -> None:
    file["worker_start_ray_commands"] = ["ray start --address=$RAY_HEAD_IP:6379"]


def _nightly(file: Document) -> None:
    del file["setup_commands"]


def _open_dashboard(file: Document) -> None:
    file["head_start_ray_commands"][1] += " --dashboard-host=0.0.0.0"


def _open_port(file: Document) -> None:
    rule = {"FromPort": 22, "ToPort": 22, "IpProtocol": "tcp", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    file["provider"]["security_group"] = {"IpPermissions": [rule]}


def _no_group(file: Document) -> None:
    del file["available_node_types"]["gpu"]["node_config"]["SecurityGroupIds"]


def _no_profile(file: Document) -> None:
    del file["available_node_types"]["head"]["node_config"]["IamInstanceProfile"]


def _stopped(file: Document) -> None:
    del file["provider"]["cache_stopped_nodes"]


def _unknown_price(file: Document) -> None:
    del file["metadata"]["price_per_hour"]["p4d.24xlarge"]


def _open_to_ipv6(file: Document) -> None:
    rule = {"FromPort": 22, "ToPort": 22, "IpProtocol": "tcp", "Ipv6Ranges": [{"CidrIpv6": "::/0"}]}
    file["provider"]["security_group"] = {"IpPermissions": [rule]}


def _open_dashboard_with_a_space(file: Document) -> None:
    file["head_start_ray_commands"][1] += " --dashboard-host 0.0.0.0"


def _no_region(file: Document) -> None:
    del file["provider"]["region"]


def _provider_is_a_word(file: Document) -> None:
    file["provider"] = "aws"


def _price_with_a_sign(file: Document) -> None:
    file["metadata"]["price_per_hour"]["m7i.xlarge"] = "$0.20"


def _no_prices(file: Document) -> None:
    file["metadata"]["price_per_hour"] = None


def _wrong_key(file: Document) -> None:
    file["max_wrokers"] = 3


def _wrong_cloud(file: Document) -> None:
    file["provider"]["type"] = "aliyun"


def _no_machine(file: Document) -> None:
    del file["available_node_types"]["cpu"]["node_config"]["InstanceType"]


@pytest.mark.parametrize(
    ("spoil", "where"),
    [
        (_without_auth, "worker_start_ray_commands"),
        (_nightly, "setup_commands"),
        (_open_dashboard, "head_start_ray_commands"),
        (_open_port, "provider.security_group.IpPermissions"),
        (_no_group, "available_node_types.gpu.node_config.SecurityGroupIds"),
        (_no_profile, "available_node_types.head.node_config.IamInstanceProfile"),
        (_stopped, "provider.cache_stopped_nodes"),
        (_unknown_price, "metadata.price_per_hour.p4d.24xlarge"),
        (_open_to_ipv6, "provider.security_group.IpPermissions"),
        (_open_dashboard_with_a_space, "head_start_ray_commands"),
        (_no_region, "provider.region"),
        (_provider_is_a_word, "provider"),
        (_price_with_a_sign, "metadata.price_per_hour.m7i.xlarge"),
        (_no_prices, "metadata.price_per_hour"),
        (_wrong_key, ""),
        (_wrong_cloud, "provider.type"),
        (_no_machine, "available_node_types.cpu.node_config.InstanceType"),
    ],
)
def test_each_mistake_is_reported_with_its_key(spoil: Callable[[Document], None], where: str, tmp_path: Path) -> None:
    file = document("aws")
    spoil(file)
    with pytest.raises(InputError) as caught:
        check(tmp_path, file)
    assert caught.value.where == f"{tmp_path / 'cluster.yaml'}: {where}"


def check(folder: Path, contents: Document) -> None:
    file = load(folder, contents)
    check_safety(file)
    file.hourly_price()


@pytest.mark.parametrize("missing", ["serviceAccounts", "networkInterfaces"])
def test_unsafe_settings_on_google_are_reported(missing: str, tmp_path: Path) -> None:
    file = document("gcp")
    del file["available_node_types"]["gpu"]["node_config"][missing]
    with pytest.raises(InputError, match=rf"gpu\.node_config\.{missing}"):
        check(tmp_path, file)


def test_a_shell_redirection_is_no_placeholder(tmp_path: Path) -> None:
    file = document("aws")
    file["setup_commands"] = ["sort <in >out"]
    load(tmp_path, file)


@pytest.mark.parametrize("text", ["a: [", "- a list", "provider: {type: [aws]}"])
def test_other_files_are_rejected(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cluster\.yaml"):
        load(tmp_path, text)


def test_virtual_cpus_are_counted_by_quota(tmp_path: Path) -> None:
    cpus = {"m7i.xlarge": 4, "c7i.4xlarge": 16, "p4d.24xlarge": 96, "g6e.12xlarge": 48}
    file = document("aws")
    assert needed_cpus(load(tmp_path, file), cpus) == {"L-1216C47A": 132, "L-417A185B": 192, "L-3819A6DF": 192}
    file["max_workers"] = 3
    few = load(tmp_path, file)
    assert needed_cpus(few, cpus) == {"L-1216C47A": 52, "L-417A185B": 192, "L-3819A6DF": 144}
    assert few.hourly_price() == pytest.approx((0.2, 0.2 + 2 * 32.77 + 10.49))
