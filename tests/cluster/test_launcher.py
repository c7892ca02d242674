"""`drivetrain cluster`: what it refuses, and a cluster on EC2 that grows and shrinks around a run, and then is gone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from drivetrain.cloud.cluster_file import ClusterFile
from drivetrain.cloud.preflight import needed_cpus
from drivetrain.cloud.safety import check_safety
from drivetrain_pipelines.errors import InputError

from tests.cluster.harness import COMMAND, LEISURE, wait_until
from tests.ec2 import REGION, Cloud, cloud
from tests.hosts import Host, needs_hosts

FILES = Path(__file__).parents[2] / "infra" / "clusters"
CLOUDS = ("aws", "gcp", "azure")
Document = dict[str, Any]


def document(cloud_name: str) -> Document:
    """A file of infra/clusters with everything filled in."""
    text = re.sub(r"<[a-z][^<>\n]*>", "filled-in", (FILES / f"{cloud_name}.yaml").read_text(), flags=re.IGNORECASE)
    found: Document = yaml.safe_load(text)
    return found


def load(folder: Path, contents: Document | str) -> ClusterFile:
    path = folder / "cluster.yaml"
    path.write_text(contents if isinstance(contents, str) else yaml.safe_dump(contents))
    return ClusterFile(path)


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
def test_what_is_not_filled_in_is_named(cloud_name: str) -> None:
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
def test_each_mistake_is_told_by_its_key(spoil: Callable[[Document], None], where: str, tmp_path: Path) -> None:
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
def test_what_google_would_open_is_told(missing: str, tmp_path: Path) -> None:
    file = document("gcp")
    del file["available_node_types"]["gpu"]["node_config"][missing]
    with pytest.raises(InputError, match=rf"gpu\.node_config\.{missing}"):
        check(tmp_path, file)


def test_what_a_shell_redirects_is_no_placeholder(tmp_path: Path) -> None:
    file = document("aws")
    file["setup_commands"] = ["sort <in >out"]
    load(tmp_path, file)


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        pytest.param(["down", "--yes"], marks=pytest.mark.slow),
        pytest.param(["up", "--yes"], marks=pytest.mark.slow),
    ],
)
def test_a_cloud_that_cannot_be_asked_is_told(tmp_path: Path, words: list[str]) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump({**document("aws"), "provider": {**document("aws")["provider"], "region": REGION}}))
    keys = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"}
    done = subprocess.run(
        [str(COMMAND), "cluster", words[0], str(path), *words[1:]],
        env={**os.environ, **keys, "HOME": str(tmp_path), "AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (1, 2), done.stderr
    assert done.stderr.startswith("error: "), done.stderr


@pytest.mark.parametrize("text", ["a: [", "- a list", "provider: {type: [aws]}"])
def test_what_is_no_cluster_file_is_told(text: str, tmp_path: Path) -> None:
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


# A cluster ------------------------------------------------------------------------------------------------------


def file_for(there: Cloud, folder: Path) -> Path:
    """Our file for AWS, for moto's machines: hosts need no container, and ask nobody for their address."""
    found = document("aws")
    del found["docker"]
    key = folder / "key.pem"
    key.write_text("of nobody")
    found["provider"] |= {"region": REGION, "availability_zone": f"{REGION}a", "use_internal_ips": True}
    found["auth"] = {"ssh_user": "ubuntu", "ssh_private_key": str(key)}
    found["idle_timeout_minutes"] = 0.2
    found["max_workers"] = 3
    groups = found["available_node_types"]
    found["available_node_types"] = {name: groups[name] for name in ("head", "cpu")}
    found["available_node_types"]["cpu"] |= {"max_workers": 3, "resources": {"CPU": 1}}
    for group in found["available_node_types"].values():
        group["node_config"] |= {
            "SubnetIds": [there.subnet],
            "SecurityGroupIds": [there.security_group],
            "IamInstanceProfile": {"Arn": there.profile},
            "ImageId": there.image,
            "BlockDeviceMappings": [],
        }
    home = folder / "home"
    home.mkdir()
    found["initialization_commands"] = []
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        found[name] = [
            command.replace("ray start", "ray start --node-ip-address=$(hostname -I | cut -d' ' -f1)").replace(
                "/mnt/drivetrain", str(home)
            )
            for command in found[name]
        ]
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(found))
    return path


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_hosts
def test_a_cluster_grows_shrinks_and_goes(toy_job: Path, tmp_path: Path) -> None:
    """No worker, three while a run wants them, none when it has ended; then no machine at all.

    Meanwhile one, a spot machine as it were, is taken back and replaced; that costs the run no step.
    """
    with cloud(tmp_path) as there:
        file = file_for(there, tmp_path)
        environment = {**there.environment, "HOME": str(tmp_path)}

        def drivetrain(*words: str) -> str:
            done = subprocess.run(
                [str(COMMAND), *words], env=environment, check=False, text=True, stdout=-1, stderr=subprocess.STDOUT
            )
            assert done.returncode == 0, done.stdout
            return done.stdout

        def machines() -> int:
            return len(there.instances())

        assert "at its largest" in drivetrain("cluster", "up", str(file), "--dry-run")
        assert there.instances() == []
        began = time.monotonic()
        said = drivetrain("cluster", "up", str(file), "--yes")
        print(f"up after {time.monotonic() - began:.0f} s")
        assert "$0.20 an hour while idle, $2.33 at its largest" in said
        assert kinds(drivetrain("cluster", "status", str(file), "--json")) == {"head": 1}
        head = there.host(there.instances()[0]["PrivateIpAddress"])
        on_head = {"DRIVETRAIN_HOME": str(tmp_path / "home"), "RAY_AUTH_MODE": "token"}
        wait_until((tmp_path / "home" / "token").exists)
        assert "cpu: {max: 3, cpus: 1.0, gpus: 0.0}" in _pools(tmp_path / "home" / "scheduling.yaml")
        began = time.monotonic()
        overrides = [f"--set={each}" for each in ("resources.workers=3", "training.global_batch_size=12", LEISURE)]
        run = head.run(str(COMMAND), "submit", str(toy_job), *overrides, **on_head).strip()
        wait_until(lambda: machines() == 4)
        assert kinds(drivetrain("cluster", "status", str(file), "--json")) == {"head": 1, "worker": 3}
        print(f"three nodes after {time.monotonic() - began:.0f} s")
        wait_until(lambda: told_of(head, run, on_head)["view"]["step"] >= 10)
        there.take_back(there.instances()[-1]["PrivateIpAddress"], within_s=60)
        waiting = head.start(str(COMMAND), "wait", run, **on_head)
        assert "completed" in waiting.communicate(timeout=300)[0]
        print(f"the run has ended after {time.monotonic() - began:.0f} s")
        ended = told_of(head, run, on_head)
        assert "is about to leave" in next(e for e in ended["history"] if e["phase"] == "stopping")["why"]
        assert ended["progress"]["restarts"] == 0
        began = time.monotonic()
        wait_until(lambda: machines() == 1)
        print(f"none of them after {time.monotonic() - began:.0f} s")
        assert "nothing is left" in drivetrain("cluster", "down", str(file), "--yes")
        assert there.instances() == []
        wait_until(lambda: not head.processes())


def told_of(head: Host, run: str, on_head: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(head.run(str(COMMAND), "status", run, "--json", **on_head))
    return found


def kinds(status: str) -> Counter[str]:
    """How many machines of each kind `drivetrain cluster status --json` has told of."""
    return Counter(json.loads(line)["kind"] for line in status.splitlines() if line.startswith("{"))


def _pools(rules: Path) -> str:
    pools = yaml.safe_load(rules.read_text())["pools"]
    return yaml.safe_dump(pools, default_flow_style=None, sort_keys=False)
