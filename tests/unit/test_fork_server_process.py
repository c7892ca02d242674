"""The agent's handle of its fork server, with a program in place of the fork server."""

from __future__ import annotations

import json
import queue
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from drivetrain_workers.agent import fork_server_process
from drivetrain_workers.agent.fork_server_process import KEEP_FREED_MEMORY, ForkServerProcess
from drivetrain_workers.agent.rank_supervisor import Link
from drivetrain_workers.protocol.events import ForkServerReady, Heartbeat, RankForked, RankId, RanksKilled
from drivetrain_workers.protocol.messages import Endpoint, ForkRank, KillRanks, Message

# Like the fork server, but without forks: every rank is another connection of the same process.
_STAND_IN = """#!{python}
import json, os, sys
sys.path[:0] = {path!r}
from drivetrain_workers.protocol.events import *
from drivetrain_workers.protocol.messages import *
print(json.dumps([sys.argv[1:], dict(os.environ)]), flush=True)
endpoint = Endpoint(os.environ["DRIVETRAIN_AGENT"], os.environ["DRIVETRAIN_AGENT_KEY"])
connection = endpoint.connect()
send(connection, ForkServerReady())
ranks = []
while True:
    request = receive(connection)
    if isinstance(request, ForkRank):
        rank = endpoint.connect()
        send(rank, Heartbeat(request.source, Beat(0, request.entry, 0, 0.0, 0.0)))
        ranks.append(rank)
        send(connection, RankForked(request.source, os.getpid()))
    else:
        for rank in ranks:
            rank.close()
        send(connection, RanksKilled())
"""

Received = queue.Queue[tuple[Message, Link]]


@pytest.fixture
def start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[bool], tuple[ForkServerProcess, Received]]]:
    program = tmp_path / "python"
    program.write_text(_STAND_IN.format(python=sys.executable, path=sys.path))
    program.chmod(0o755)
    monkeypatch.setattr(fork_server_process.sys, "executable", str(program))
    started: list[ForkServerProcess] = []

    def start(gpus: bool) -> tuple[ForkServerProcess, Received]:
        received: Received = queue.Queue()
        log = tmp_path / "logs" / "fork-server.log"
        started.append(ForkServerProcess(3, gpus, log, lambda message, link: received.put((message, link))))
        return started[-1], received

    yield start
    for process in started:
        process.kill()
        process._process.wait()


def logged(folder: Path) -> tuple[list[str], dict[str, str]]:
    arguments, environment = json.loads((folder / "logs" / "fork-server.log").read_text().splitlines()[0])
    return arguments, environment


@pytest.mark.parametrize("gpus", [False, True])
def test_arguments_and_environment(start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: bool) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "77")
    process, received = start(gpus)
    message, _ = received.get(timeout=60)
    assert isinstance(message, ForkServerReady)
    assert Path(f"/proc/{process.pid}").exists()
    assert process.is_alive
    arguments, environment = logged(tmp_path)
    assert arguments == ["-m", "drivetrain_workers.agent.fork_server"]
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["MALLOC_TRIM_THRESHOLD_"] == "77"  # a value set by the user takes precedence
    if gpus:
        assert environment["CUDA_VISIBLE_DEVICES"] == "2,3"
        assert "DS_ACCELERATOR" not in environment
    else:
        assert (environment["CUDA_VISIBLE_DEVICES"], environment["DS_ACCELERATOR"]) == ("", "cpu")
        assert environment["MALLOC_MMAP_MAX_"] == KEEP_FREED_MEMORY["MALLOC_MMAP_MAX_"]


def test_requests_and_answers_over_the_links(start) -> None:
    _, received = start(False)
    _, server = received.get(timeout=60)
    source = RankId(2, 5)
    server.send(ForkRank(source, "package:main", "{}"))
    answers = dict(received.get(timeout=60) for _ in range(2))
    assert {type(message) for message in answers} == {RankForked, Heartbeat}
    for message, link in answers.items():
        assert message.source == source
        assert (link is server) == isinstance(message, RankForked)  # each connection has its own link
    server.send(KillRanks())
    assert isinstance(received.get(timeout=60)[0], RanksKilled)


def test_a_program_without_the_key_has_no_effect(start) -> None:
    process, received = start(False)
    _, server = received.get(timeout=60)
    wrong_key = Endpoint(process.endpoint.name, Endpoint.create().key)
    with pytest.raises(Exception, match="digest"):
        wrong_key.connect()
    server.send(KillRanks())
    assert isinstance(received.get(timeout=60)[0], RanksKilled)
    with process.endpoint.connect():  # processes with the key still connect
        pass


def test_a_process_that_has_ended_is_not_alive(start) -> None:
    process, received = start(False)
    _, server = received.get(timeout=60)
    process.kill()
    process._process.wait()
    assert not process.is_alive
    with pytest.raises(BrokenPipeError):
        server.send(KillRanks())
    assert received.empty()  # the agent detects its end, it sends no message
