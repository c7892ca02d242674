"""The batch script, with a real Slurm on loopback: a run on two nodes that is requeued at its time limit."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from drivetrain.runs.store import RunStore

from tests.cluster.harness import LEISURE
from tests.infra.test_local_stack import free_port
from tests.infra.tools import INFRA
from tests.packages import needs

SCRIPT = INFRA / "slurm" / "drivetrain.sbatch"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    needs("munged", "slurmctld", "slurmd", "sbatch", root=True),
]
_CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={ports[0]}
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/linear
ReturnToService=2
KillWait=60
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """A controller and two nodes.

    Attributes:
        environment: of its users.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        configuration = folder / "slurm.conf"
        ports = [free_port() for _ in range(3)]
        configuration.write_text(_CONFIGURATION.format(folder=folder, ports=ports, host=os.uname().nodename))
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        (folder / "home").mkdir()
        home = {"DRIVETRAIN_HOME": str(folder / "home"), "GLOO_SOCKET_IFNAME": "lo"}
        self.environment = {**os.environ, **home, "PATH": path, "SLURM_CONF": str(configuration)}

    def daemons(self) -> list[list[str]]:
        """Return the commands of the daemons, which stay in the foreground."""
        folder = self.folder
        socket, key = f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key"
        files = [f"--{name}={folder}/munge.{name}" for name in ("pid-file", "log-file", "seed-file")]
        munge = ["munged", "--foreground", "--force", socket, key, *files]
        return [munge, ["slurmctld", "-D"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"]]

    def ask(self, *words: str) -> str:
        return subprocess.check_output(words, env=self.environment, text=True, cwd=self.folder).strip()

    def submit(self, *words: str) -> str:
        return self.ask("sbatch", "--parsable", "--nodes=2", f"--output={self.folder}/%j.log", str(SCRIPT), *words)

    def state(self, job: str) -> str:
        return self.ask("scontrol", "show", "job", job).split("JobState=")[1].split()[0]

    def wait(self, job: str, *states: str) -> str:
        deadline = time.monotonic() + 300
        while self.state(job) not in states:
            assert time.monotonic() < deadline, self.said(job)
            time.sleep(0.5)
        return self.said(job)

    def said(self, job: str) -> str:
        log = self.folder / f"{job}.log"
        return log.read_text() if log.exists() else self.ask("scontrol", "show", "job", job)


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    made = Slurm(tmp_path)
    (tmp_path / "munge.key").write_bytes(os.urandom(128))
    (tmp_path / "munge.key").chmod(0o400)
    (tmp_path / "state").mkdir()
    (tmp_path / "slurmctld.log").touch()
    with ExitStack() as stack:
        for number, command in enumerate(made.daemons()):
            log = stack.enter_context((tmp_path / f"daemon-{number}.out").open("w"))
            daemon = subprocess.Popen(command, env=made.environment, stdout=log, stderr=log)
            stack.callback(daemon.wait, timeout=60)
            stack.callback(daemon.terminate)
            time.sleep(1)
        deadline = time.monotonic() + 60
        while made.ask("sinfo", "--noheader", "--format=%T") != "idle":
            assert time.monotonic() < deadline, made.ask("sinfo", "--long", "--Node")
            time.sleep(0.5)
        yield made


def test_a_run_over_two_nodes(slurm: Slurm, toy_job: Path) -> None:
    job = slurm.submit(str(toy_job), "--set", LEISURE)
    home = slurm.folder / "home"
    deadline = time.monotonic() + 240
    while not any(home.glob("runs/*/checkpoints/step-*")):
        assert time.monotonic() < deadline, slurm.said(job)
        time.sleep(0.2)
    slurm.ask("scancel", "--signal=TERM", "--batch", job)  # as Slurm does, some time before its limit
    slurm.wait(job, "PENDING")
    slurm.ask("scontrol", "update", f"JobId={job}", "StartTime=now")  # it would wait for two minutes
    said = slurm.wait(job, "COMPLETED", "FAILED", "CANCELLED")
    assert "cancelled" in said
    assert "completed" in said
    (record,) = RunStore(f"sqlite:///{home / 'drivetrain.db'}").page()
    assert record.facts.reason == "completed"
    assert record.state.progress.step == 40
    assert record.state.progress.generation == 2
