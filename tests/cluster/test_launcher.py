"""`drivetrain cluster`: rejected files, and a cluster on EC2 that scales up and down with a run and is then removed."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.harness import COMMAND, LEISURE, wait_until
from tests.cluster_files import document
from tests.ec2 import REGION, Cloud, cloud
from tests.hosts import Host, needs_hosts


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        pytest.param(["down", "--yes"], marks=pytest.mark.slow),
        pytest.param(["up", "--yes"], marks=pytest.mark.slow),
    ],
)
def test_a_cloud_that_cannot_be_queried_is_reported(tmp_path: Path, words: list[str]) -> None:
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


# A cluster ------------------------------------------------------------------------------------------------------


def file_for(there: Cloud, folder: Path) -> Path:
    """Return our AWS file for moto's machines: hosts without a container, and fixed addresses."""
    found = document("aws")
    del found["docker"]
    key = folder / "key.pem"
    key.write_text("not a key")
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
    """No worker at first, three while a run needs them, none after its end; finally no machine.

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
        assert "$0.20 per hour when idle, $2.33 per hour at its largest" in said
        assert kinds(drivetrain("cluster", "status", str(file), "--json")) == {"head": 1}
        head = there.host(there.instances()[0]["PrivateIpAddress"])
        on_head = {"DRIVETRAIN_HOME": str(tmp_path / "home"), "RAY_AUTH_MODE": "token"}
        wait_until((tmp_path / "home" / "token").exists)
        assert "cpu: {max: 3, cpus: 1.0, gpus: 0.0}" in _pools(tmp_path / "home" / "scheduling.yaml")
        began = time.monotonic()
        overrides = [f"--set={each}" for each in ("resources.workers=3", "training.global_batch_size=12", LEISURE)]
        run = head.run(str(COMMAND), "submit", str(toy_job), *overrides, **on_head).split()[
            -1
        ]  # after the line that names the server
        wait_until(lambda: machines() == 4)
        assert kinds(drivetrain("cluster", "status", str(file), "--json")) == {"head": 1, "worker": 3}
        print(f"three nodes after {time.monotonic() - began:.0f} s")
        wait_until(lambda: told_of(head, run, on_head)["view"]["step"] >= 10)
        there.take_back(there.instances()[-1]["PrivateIpAddress"], within_s=60)
        waiting = head.start(str(COMMAND), "wait", run, **on_head)
        assert "completed" in waiting.communicate(timeout=300)[0]
        print(f"the run has ended after {time.monotonic() - began:.0f} s")
        ended = told_of(head, run, on_head)
        assert "is draining" in next(e for e in ended["history"] if e["phase"] == "stopping")["why"]
        assert ended["progress"]["restarts"] == 0
        began = time.monotonic()
        wait_until(lambda: machines() == 1)
        print(f"none of them after {time.monotonic() - began:.0f} s")
        assert "no machine is left" in drivetrain("cluster", "down", str(file), "--yes")
        assert there.instances() == []
        wait_until(lambda: not head.processes())


def told_of(head: Host, run: str, on_head: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(head.run(str(COMMAND), "status", run, "--json", **on_head))
    return found


def kinds(status: str) -> Counter[str]:
    """Count the machines of each kind in `drivetrain cluster status --json`."""
    return Counter(json.loads(line)["kind"] for line in status.splitlines() if line.startswith("{"))


def _pools(rules: Path) -> str:
    pools = yaml.safe_load(rules.read_text())["pools"]
    return yaml.safe_dump(pools, default_flow_style=None, sort_keys=False)
