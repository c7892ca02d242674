"""Run the real command, follow it through ``--json``, and kill parts of it by process id."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from drivetrain.api.interface import RunInfo
from drivetrain.runs.store import RunStore
from drivetrain_workers.records import ledger
from drivetrain_workers.records.run_folder import RunFolder

from tests.cluster.warm_ray import warm_ray

View = dict[str, Any]
COMMAND = Path(sys.executable).with_name("drivetrain")
LEISURE = "model.loss=toy_loss:slower_loss"  # slower steps with the same results
_TIMEOUT_S = 180


@dataclass(frozen=True)
class Result:
    """A finished command."""

    code: int
    run_id: str
    facts: dict[str, Any]
    last_view: View
    home: Path
    errors: str

    @classmethod
    def of(cls, found: RunInfo, home: Path) -> Result:
        """Return the result of a run of a server."""
        assert found.view
        return cls(0, found.id, found.facts.to_json(), found.view.to_json(), home, "")

    def series(self, key: str) -> dict[int, float]:
        """Return a metric by step, as read by MLflow's client. Fails if a step was logged twice."""
        from mlflow import MlflowClient

        history = MlflowClient(self.facts["mlflow_uri"]).get_metric_history(self.facts["mlflow_run_id"], key)
        by_step = {metric.step: metric.value for metric in history}
        assert len(by_step) == len(history), f"a step of {key} was logged twice"
        return by_step

    def weights_digest(self) -> str:
        """Return a digest over the raw files of the final checkpoint: weights and optimizer state, bit for bit."""
        folder = Path(self.facts["checkpoint"])
        return hashlib.sha256(b"".join(p.read_bytes() for p in sorted(folder.glob("*.bin")))).hexdigest()


def assert_same(result: Result, undisturbed: Result) -> None:
    """Assert that two runs of one job have identical results."""
    assert result.facts["reason"] == undisturbed.facts["reason"] == "completed", result.facts
    assert result.series("loss") == undisturbed.series("loss")
    assert result.series("eval_loss") == undisturbed.series("eval_loss")
    assert result.weights_digest() == undisturbed.weights_digest()


def step_gaps(home: Path, run_id: str) -> list[float]:
    """Return the seconds between steps, by the ranks' own clock."""
    times = [record.time for record in ledger.read(RunFolder(home / "runs" / run_id).ledger)]
    return [later - earlier for earlier, later in pairwise(times)]


started: list[RunningJob] = []  # a failed test leaves no process running


def environment_of(home: Path, own_ray: bool = False) -> dict[str, str]:
    """Return the environment of commands; with ``own_ray`` they start a separate Ray, not the warm one."""
    found = {**os.environ, "DRIVETRAIN_HOME": str(home)}
    found.pop("RAY_ADDRESS", None)
    return found if own_ray else found | warm_ray.environment


class RunningJob:
    """A `drivetrain run` or `resume` in a separate process.

    Args:
        own_ray: see `environment_of`.
    """

    def __init__(self, arguments: list[str], home: Path, own_ray: bool = False) -> None:
        self.home = home
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed by close()
        self.process = subprocess.Popen(
            [str(COMMAND), *arguments, "--json"],
            env=environment_of(home, own_ray),
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._views: queue.SimpleQueue[View | None] = queue.SimpleQueue()
        self._last: View = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        started.append(self)

    def wait_for(self, condition: Callable[[View], bool]) -> View:
        """Return the first view that fulfils ``condition``."""
        deadline = time.monotonic() + _TIMEOUT_S
        while (view := self._views.get(timeout=max(0.1, deadline - time.monotonic()))) is not None:
            self._last = view
            if "phase" in view and condition(view):
                return view
        raise AssertionError(f"it ended first: {self._last}\n{self.errors()}")

    def wait_for_step(self, step: int) -> View:
        """Wait until training has reached ``step``."""
        return self.wait_for(lambda view: view["phase"] == "training" and view["step"] >= step)

    def kill_part(self, part: str, step: int) -> View:
        """SIGKILL one process of the run, by the ids in its view, once ``step`` is reached."""
        view = self.wait_for_step(step)
        os.kill(view["pids"][part], signal.SIGKILL)
        return view

    def descendants(self) -> list[psutil.Process]:
        """Return every process that this command has started; includes those of the run only with a separate Ray."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def finish(self) -> Result:
        """Wait for the end; returns what the command printed last."""
        view: View = {}
        last_line: View = {}
        while (line := self._views.get(timeout=_TIMEOUT_S)) is not None:
            view = line if "phase" in line else view
            last_line = line
        code = self.process.wait(timeout=30)
        result = Result(
            code, last_line.get("run_id", ""), last_line.get("facts", {}), view or self._last, self.home, self.errors()
        )
        self.close()
        return result

    def errors(self) -> str:
        """Return the stderr of the command."""
        self._errors.seek(0)
        return self._errors.read()

    def close(self) -> None:
        """SIGKILL the command if it still runs, and close its output."""
        if not self._errors.closed:
            self.process.kill()
            self.process.wait()
            self._reader.join()
            self._errors.close()

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as output:
            for line in output:
                self._views.put(json.loads(line))
        self._views.put(None)


def run_job(job: Path, home: Path, *overrides: str, own_ray: bool = False) -> RunningJob:
    """Start `drivetrain run`. Args: see `RunningJob`."""
    return RunningJob(["run", str(job), *(f"--set={override}" for override in overrides)], home, own_ray)


def resume_run(run_id: str, home: Path, own_ray: bool = False) -> RunningJob:
    """Start `drivetrain resume`. Args: see `RunningJob`."""
    return RunningJob(["resume", run_id], home, own_ray)


def wait_until_gone(processes: list[psutil.Process], seconds: float = 60) -> list[psutil.Process]:
    """Return the processes that still run after ``seconds``."""
    return psutil.wait_procs(processes, timeout=seconds)[1]


def command_line(home: Path, *arguments: str, own_ray: bool = False) -> subprocess.CompletedProcess[str]:
    """Run `drivetrain` to its end, as in a pipe. Args: see `environment_of`."""
    return subprocess.run(
        [str(COMMAND), *arguments], env=environment_of(home, own_ray), capture_output=True, text=True, check=False
    )


def wait_until(true: Callable[[], bool], timeout_s: float = 240.0) -> None:
    """Look twice a second."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def forget_unended(home: Path) -> None:
    """Delete unended runs, so that the next run of the same job starts at its first step."""
    store = RunStore(f"sqlite:///{home / 'drivetrain.db'}")
    for record in store.unended():
        store.delete(record.id)
