"""The disposable rank process: join the gang, load the newest checkpoint, train, report."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from drivetrain_workers.protocol.events import RankDone, RankFailed, TrainingFinished
from drivetrain_workers.protocol.messages import RankTask
from drivetrain_workers.protocol.processes import end_with_parent
from drivetrain_workers.rank.agent_link import AgentLink
from drivetrain_workers.rank.failures import explain
from drivetrain_workers.rank.loop import finish, train_steps
from drivetrain_workers.rank.parts import standard_points
from drivetrain_workers.rank.peak_memory import peak_bytes
from drivetrain_workers.rank.setup import open_run
from drivetrain_workers.records.run_folder import RunFolder


def main(task_json: str) -> None:
    """Run the forked process, and report its end to the agent: an exit code alone says nothing.

    Exits with 0 when training is done or was stopped, with 1 on an error.
    """
    end_with_parent()
    task = RankTask.from_json(task_json)
    link = AgentLink(task)
    try:
        _log_to(RunFolder(Path(task.run_folder)).log(task.rank))
        train(task, link)
    except BaseException as error:
        with suppress(Exception):  # the log may be on a full disk
            traceback.print_exc()
        link.report(RankFailed(task.id, *explain(task, error)))
        _end(1)
    link.report(RankDone(task.id))
    _end(0)


def train(task: RankTask, link: AgentLink) -> None:
    """Train from the newest valid checkpoint to the end of the run, or until a stop is requested."""
    run = open_run(task, link)
    points = standard_points(run)
    with run.data.batches(run.plan, task.rank, task.local_ranks, run.positions.start(run.step)) as batches:
        train_steps(run, batches, points)
        finish(run, points)
    if task.rank == 0:
        link.report(TrainingFinished(task.id, run.complete, peak_bytes(), run.base_bytes))


def _log_to(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _end(code: int) -> None:
    """Exit immediately: the shutdown of the interpreter or process group can hang when other ranks are gone."""
    with suppress(OSError, ValueError):  # a full disk; a stream that the job's code has closed
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
