"""Gangs of ranks with real DeepSpeed and gloo, forked by this script as the fork server forks ranks.

``python -m tests.unit.gang FUNCTION FOLDER GANGS`` calls ``FUNCTION(member, case)``, a path like ``module:name``, on
every rank of one gang after another.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

_TIMEOUT_S = 300.0  # for all gangs of a test


@dataclass(frozen=True)
class Gang:
    """A gang, and the JSON of what it does, one after another."""

    world_size: int
    cases: list[Any]


@dataclass(frozen=True)
class Member:
    """A rank of a gang."""

    rank: int
    world_size: int
    rendezvous: str

    @cached_property
    def device(self) -> Any:
        """Join the gang; return the device."""
        from drivetrain_workers.engine.engine import join_group

        return join_group(self.rank, self.rank, self.world_size, self.rendezvous)


def run_gangs(function: Callable[[Member, Any], Any], gangs: list[Gang], folder: Path) -> list[list[list[Any]]]:
    """Return the results of a function: ``[gang][case][rank]``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = f"{function.__module__}:{function.__name__}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    asked = json.dumps([asdict(gang) for gang in gangs])
    command = [sys.executable, "-m", "tests.unit.gang", path, str(folder), asked]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return [
        [
            list(ranks)
            for ranks in zip(*(_results(folder, number, rank) for rank in range(gang.world_size)), strict=True)
        ]
        for number, gang in enumerate(gangs)
    ]


def _results(folder: Path, gang: int, rank: int) -> Any:
    return json.loads((folder / f"gang-{gang}-{rank}.json").read_text())


def _rank(member: Member, function: Callable[[Member, Any], Any], cases: list[Any], target: Path) -> None:
    from drivetrain_workers.protocol.processes import end_with_parent

    end_with_parent()
    target.write_text(json.dumps([function(member, case) for case in cases]))


def main(path: str, folder: Path, gangs: list[Gang]) -> None:
    """Fork the ranks; the exit status says whether all ended in order."""
    from drivetrain_workers.agent.fork_server import preload

    preload()
    module, name = path.split(":")
    function = getattr(import_module(module), name)
    fork = multiprocessing.get_context("fork")
    failed = False
    for number, gang in enumerate(gangs):
        rendezvous = folder / f"rendezvous-{number}"
        rendezvous.unlink(missing_ok=True)
        members = [Member(rank, gang.world_size, f"file://{rendezvous}") for rank in range(gang.world_size)]
        ranks = [
            fork.Process(target=_rank, args=(one, function, gang.cases, folder / f"gang-{number}-{one.rank}.json"))
            for one in members
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        failed |= any(process.exitcode for process in ranks)
    sys.exit(failed)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), [Gang(**gang) for gang in json.loads(sys.argv[3])])
