"""Several machines on one: each "host" is a set of namespaces (network, mounts, process ids, host name), on a bridge.

Needs root on Linux with util-linux and iproute2. Hosts share the file system, as machines with a network file system
do, but have their own /tmp/ray and /dev/shm.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

PLACES_OF_RAY = ("RAY_TMPDIR", "TMPDIR", "RAY_AUTH_TOKEN_PATH")  # variables; each host has its own /tmp/ray


def available() -> bool:
    """Check whether this machine supports network namespaces."""
    probe = ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "true"]
    return (
        all(shutil.which(tool) for tool in ("unshare", "nsenter", "ip"))
        and not subprocess.run(probe, check=False, stderr=subprocess.DEVNULL).returncode
    )


needs_hosts = pytest.mark.skipif(
    not available(), reason="no namespaces for hosts here: they need root, and packages of `make test-packages`"
)


class Host:
    """One host.

    Attributes:
        name: of the host.
        address: its IP address.
        home: folder of its users' things.
        log: file with what its services have printed.
    """

    def __init__(self, bridge: str, name: str, address: str, folder: Path) -> None:
        self.name, self.address = name, address
        self._bridge, self._namespace, self._link = bridge, f"{bridge}-{name}", f"{bridge}{name}"
        for part in ("ray", "home"):
            (folder / part).mkdir(parents=True)
        Path("/tmp/ray").mkdir(exist_ok=True)
        _ip("netns", "add", self._namespace)
        _ip("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self._namespace)
        _ip("link", "set", self._link, "master", bridge, "up")
        for line in (f"addr add {address}/24 dev eth0", "link set eth0 up", "link set lo up"):
            _ip("-n", self._namespace, *line.split())
        mounts = f"mount --bind {folder}/ray /tmp/ray && mount -t tmpfs tmpfs /dev/shm"
        init = f"hostname {name} && {mounts} && exec sleep infinity"
        inside = ["unshare", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "--propagation", "private"]
        keeper = ["ip", "netns", "exec", self._namespace, *inside, "bash", "-c", init]
        self._keeper = subprocess.Popen(keeper, stderr=subprocess.DEVNULL)  # unshare warns of the kernel
        self._init = self._wait_for_init()
        self._process_ids = _process_ids_of(self._init)
        self.home, self.log = folder / "home", folder / "log"
        kept = {name: value for name, value in os.environ.items() if name not in PLACES_OF_RAY}
        self._environment = {**kept, "HOME": str(self.home)}
        self._services: list[subprocess.Popen[bytes]] = []

    def command(self, *words: str) -> list[str]:
        """Return a command line that runs inside the host."""
        return ["nsenter", "--target", str(self._init), "--net", "--mount", "--uts", "--pid", *words]

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        """Run a program inside."""
        return subprocess.Popen(
            self.command(*words),
            env={**self._environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def keep_running(self, *words: str, **environment: str) -> None:
        """Run a program inside for as long as the host is on; what it prints is added to the log."""
        with self.log.open("a") as log:
            environment = {**self._environment, **environment}
            self._services.append(subprocess.Popen(self.command(*words), env=environment, stdout=log, stderr=log))

    def run(self, *words: str, **environment: str) -> str:
        """Run a program inside to its end; returns what it printed."""
        process = self.start(*words, **environment)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        return output

    def processes(self) -> list[psutil.Process]:
        """Return all processes inside, except the host's first process."""
        return [p for p in psutil.process_iter() if p.pid != self._init and _process_ids_of(p.pid) == self._process_ids]

    def end_processes(self) -> None:
        """Kill all that runs inside, at once; the host stays, as after a quick reboot."""
        found = self.processes()
        for process in found:
            process.kill()
        psutil.wait_procs(found, timeout=10)

    def cut(self) -> None:
        """Pull the network cable."""
        _ip("link", "set", self._link, "down")

    def power_off(self) -> None:
        """End everything inside immediately."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._init, signal.SIGKILL)
        for process in (self._keeper, *self._services):
            process.wait()

    def remove(self) -> None:
        """Power off and remove everything."""
        self.power_off()
        _ip("netns", "del", self._namespace)

    def _wait_for_init(self) -> int:
        """Return the process id of the host's first process, seen from outside, once its mounts are ready."""
        for _ in range(100):
            time.sleep(0.05)
            for process in psutil.Process(self._keeper.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if process.name() == "sleep":
                        return process.pid
        raise AssertionError("the host did not start")


class Network:
    """A bridge that connects hosts; this machine has the address 254 on it.

    Attributes:
        prefix: the first three parts of all addresses.
    """

    def __init__(self, folder: Path) -> None:
        self.prefix = f"10.{88 + secrets.randbelow(100)}.{secrets.randbelow(256)}"
        self._folder, self._bridge = folder, f"dt{secrets.token_hex(2)}"
        self._hosts: list[Host] = []

    def add(self, number: int) -> Host:
        """Add a host by the last part of its address."""
        name = f"h{number}"
        made = Host(self._bridge, name, f"{self.prefix}.{number}", self._folder / name)
        self._hosts.append(made)
        return made

    def remove(self, host: Host) -> None:
        """Power off a host, and leave nothing of it."""
        self._hosts.remove(host)
        host.remove()

    def __enter__(self) -> Network:
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("addr", "add", f"{self.prefix}.254/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for host in [*self._hosts]:
            self.remove(host)
        _ip("link", "del", self._bridge)


@contextlib.contextmanager
def hosts(count: int, folder: Path) -> Iterator[list[Host]]:
    """Create some hosts for the duration of a test."""
    with Network(folder) as network:
        yield [network.add(number) for number in range(1, count + 1)]


def _process_ids_of(pid: int) -> str:
    """Return the process id namespace of a process."""
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/pid")
    return ""


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
