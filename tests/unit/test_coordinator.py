"""The coordinator that manages a run."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from drivetrain.coordinator.coordinator import Coordinator, hold_owner_lock
from drivetrain.errors import RunOwnedError
from drivetrain.runs.states import Queued
from drivetrain.runs.store import RunStore

RUN = "toy-1"


class Loop:
    """A run that is managed until `end` is called."""

    def __init__(self) -> None:
        self.ended = False

    def start(self, on_end: Callable[[], None]) -> None:
        self._on_end = on_end

    def wait_if_closing(self) -> None:
        pass

    def end(self) -> None:
        self._on_end()
        self.ended = True


def coordinator(folder: Path, session: str, build: Callable[[], Any] = Loop) -> Coordinator:
    store = RunStore(f"sqlite:///{folder / 'runs.db'}")
    own = lambda run: hold_owner_lock(run, folder / run)  # noqa: E731
    return Coordinator(store, session, lambda _: build(), lambda _: None, own, dict)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    RunStore(f"sqlite:///{tmp_path / 'runs.db'}").create(RUN, "fingerprint", Queued())
    return tmp_path


def test_a_run_has_one_coordinator_at_a_time(folder: Path) -> None:
    loops: list[Loop] = []

    def build() -> Loop:
        loops.append(Loop())
        return loops[-1]

    first, second = coordinator(folder, "first", build), coordinator(folder, "second", build)
    first.adopt(RUN)
    first.adopt(RUN)
    with pytest.raises(RunOwnedError, match=RUN):
        second.adopt(RUN)
    for owner in (second, first):  # a run ends in its own thread
        ending = threading.Thread(target=loops[-1].end)
        ending.start()
        ending.join()
        owner.adopt(RUN)
    assert len(loops) == 3


def test_a_run_that_could_not_be_built_has_no_coordinator(folder: Path) -> None:
    def fail() -> Loop:
        raise ValueError("job")

    with pytest.raises(ValueError, match="job"):
        coordinator(folder, "first", fail).adopt(RUN)
    coordinator(folder, "second").adopt(RUN)


def adopt_and_wait(folder: Path, ready: Connection) -> None:
    owner = coordinator(folder, "first")
    owner.adopt(RUN)
    ready.send(True)
    threading.Event().wait()


def test_a_killed_coordinator_owns_nothing(folder: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=adopt_and_wait, args=(folder, there))
    process.start()
    try:
        assert here.recv()
        second = coordinator(folder, "second")
        with pytest.raises(RunOwnedError):
            second.adopt(RUN)
    finally:
        process.kill()
        process.join()
    second.adopt(RUN)
