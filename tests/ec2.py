"""EC2 with moto, whose instances are hosts that run programs: a cloud for Ray's cluster launcher.

Launcher and autoscaler reach the hosts by `ssh` and `rsync`, as everywhere; here these are small scripts that ask this
process to run the command in the host's namespaces.
"""

from __future__ import annotations

import os
import secrets
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

import boto3
import httpx

from tests.hosts import PLACES_OF_RAY, Host, Network
from tests.metadata_service import give_notice, notice_of, serve_metadata

REGION = "us-east-1"
_SCRIPT = """#!{python}
import sys
from multiprocessing.connection import Client
with Client({socket!r}, "AF_UNIX", authkey={key!r}) as link:
    link.send(({program!r}, sys.argv[1:]))
    while not isinstance(said := link.recv(), int):
        sys.stdout.buffer.write(said)
        sys.stdout.buffer.flush()
sys.exit(said)
"""


# AWS starts as many instances as possible, up to MaxCount; moto starts MinCount.
_MOTO = """
import sys
from moto.ec2.responses.instances import InstanceResponse
from moto.server import main
ask = InstanceResponse._get_param
def as_many(self, name, *rest, **more):
    return ask(self, "MaxCount" if name == "MinCount" else name, *rest, **more)
InstanceResponse._get_param = as_many
main(sys.argv[1:])
"""


class Cloud:
    """Instances and their hosts.

    Attributes:
        environment: for programs that use this cloud.
        subnet, security_group, profile, image: to start instances with.
    """

    def __init__(self, network: Network, folder: Path, uri: str) -> None:
        self._network, self._folder = network, folder
        self._hosts: dict[str, Host] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._ends: list[threading.Timer] = []
        path = f"{self._make_scripts()}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {
            **os.environ,
            "PATH": path,
            "AWS_ENDPOINT_URL": uri,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": REGION,
            "RAY_USAGE_STATS_ENABLED": "0",
            "GLOO_SOCKET_IFNAME": "eth0",
            "RAY_raylet_start_wait_time_s": "120",  # in parallel to other tests
        }
        for name in PLACES_OF_RAY:
            self.environment.pop(name, None)
        access = {"endpoint_url": uri, "aws_access_key_id": "test", "aws_secret_access_key": "test"}
        self.ec2 = boto3.client("ec2", REGION, **access)
        block = f"{network.prefix}.0/24"
        vpc = self.ec2.create_vpc(CidrBlock=block)["Vpc"]["VpcId"]
        found = self.ec2.create_subnet(VpcId=vpc, CidrBlock=block, AvailabilityZone=f"{REGION}a")
        self.subnet = found["Subnet"]["SubnetId"]
        group = self.ec2.create_security_group(GroupName="nodes", Description="nodes", VpcId=vpc)
        self.security_group = group["GroupId"]
        profile = boto3.client("iam", REGION, **access).create_instance_profile(InstanceProfileName="nodes")
        self.profile = profile["InstanceProfile"]["Arn"]
        self.image = self.ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]

    def instances(self) -> list[dict[str, Any]]:
        """Return all instances that have not ended."""
        states = [{"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}]
        reservations = self.ec2.describe_instances(Filters=states)["Reservations"]
        return [instance for reservation in reservations for instance in reservation["Instances"]]

    def host(self, address: str) -> Host:
        """Return the host of an instance, created on first use."""
        with self._lock:
            if address not in self._hosts:
                made = self._network.add(int(address.rpartition(".")[2]))
                # /etc/profile sets another PATH
                (made.home / ".bashrc").write_text(f"export PATH={self.environment['PATH']}\n")
                serve_metadata(made)
                self._hosts[address] = made
            return self._hosts[address]

    def take_back(self, address: str, within_s: float) -> None:
        """Interrupt a spot instance, as the cloud does."""
        give_notice(notice_of(self.host(address)), datetime.now(UTC) + timedelta(seconds=within_s))
        (found,) = [instance["InstanceId"] for instance in self.instances() if instance["PrivateIpAddress"] == address]
        end = threading.Timer(within_s, self.ec2.terminate_instances, kwargs={"InstanceIds": [found]})
        end.start()
        self._ends.append(end)

    def follow(self) -> None:
        """Power hosts off when their instances have ended."""
        while not self._closed.wait(0.5):
            there = {instance["PrivateIpAddress"] for instance in self.instances()}
            with self._lock:
                for address in self._hosts.keys() - there:
                    self._network.remove(self._hosts.pop(address))

    def serve(self) -> None:
        """Run what the scripts ask for."""
        while not self._closed.is_set():
            with suppress(EOFError, OSError):
                threading.Thread(target=self._answer, args=(self._listener.accept(),), daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        self._listener.close()
        for end in self._ends:
            end.cancel()

    def _make_scripts(self) -> Path:
        scripts, meeting = self._folder / "bin", str(self._folder / "socket")
        scripts.mkdir()
        key = secrets.token_bytes(16)
        self._listener = Listener(meeting, "AF_UNIX", authkey=key)
        for program in ("ssh", "rsync"):
            script = scripts / program
            script.write_text(_SCRIPT.format(python=sys.executable, socket=meeting, key=key, program=program))
            script.chmod(0o755)
        return scripts

    def _answer(self, link: Connection) -> None:
        with link, suppress(EOFError, OSError):
            program, words = link.recv()
            host, command = self._ssh(words) if program == "ssh" else self._rsync(words)
            with subprocess.Popen(
                host.command("bash", "-c", command),
                env={**self.environment, "HOME": str(host.home), "USER": "ubuntu"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            ) as process:
                assert process.stdout
                while said := os.read(process.stdout.fileno(), 1 << 16):
                    link.send(said)
                link.send(process.wait())

    def _ssh(self, words: list[str]) -> tuple[Host, str]:
        """Run ``ssh OPTIONS... USER@ADDRESS COMMAND...``."""
        place = next(index for index, word in enumerate(words) if "@" in word)
        return self.host(words[place].rpartition("@")[2]), " ".join(words[place + 1 :])

    def _rsync(self, words: list[str]) -> tuple[Host, str]:
        """Run ``rsync OPTIONS... SOURCE USER@ADDRESS:TARGET``; the hosts share this machine's files."""
        source, target = words[-2:]
        address, path = target.rpartition("@")[2].split(":", 1)
        inside = path.replace("~", "$HOME", 1)
        return self.host(address), f'mkdir -p "$(dirname "{inside}")" && cp -a {shlex.quote(source)} "{inside}"'


@contextmanager
def cloud(folder: Path) -> Iterator[Cloud]:
    """Run a cloud for the duration of a test."""
    with Network(folder / "hosts") as network, moto(f"{network.prefix}.254") as uri:
        made = Cloud(network, folder, uri)
        followers = [threading.Thread(target=work, daemon=True) for work in (made.follow, made.serve)]
        for follower in followers:
            follower.start()
        try:
            yield made
        finally:
            made.close()
            followers[0].join()


@contextmanager
def moto(address: str) -> Iterator[str]:
    """Run Amazon's interfaces at the yielded URL for the duration of a test."""
    with socket.create_server((address, 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", _MOTO, "-H", address, "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        uri = f"http://{address}:{port}"
        try:
            deadline = time.monotonic() + 60
            while not _answers(uri):
                assert time.monotonic() < deadline, "moto did not start"
                time.sleep(0.2)
            yield uri
        finally:
            server.terminate()


def _answers(uri: str) -> bool:
    with suppress(httpx.TransportError):
        httpx.get(uri)
        return True
    return False
